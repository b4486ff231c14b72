"""commits/UNIT.json: the one thing that makes a unit exist. Written last, never replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.files import write_whole
from cache.identity import digest, seal, unseal
from manifests.errors import CacheError

_FILE = re.compile(r"(\d{6,})\.json")


class Commits:
    """The commit records of one cache. `plan`: what the cache is (JSON values); records of another are refused."""

    def __init__(self, root: Path, plan: dict[str, Any]) -> None:
        self.root, self.plan = root, digest(plan)
        self._seen: dict[int, dict[str, Any]] = {}  # records never change: reading each once is enough

    def path(self, unit: int) -> Path:
        return self.root / "commits" / f"{unit:06d}.json"

    def units(self) -> list[int]:
        """All units that have a record, sorted; each record is read and checked. CacheError for a damaged one."""
        names = (_FILE.fullmatch(path.name) for path in (self.root / "commits").glob("*.json"))
        return [unit for unit in sorted(int(name[1]) for name in names if name) if self.get(unit)]

    def get(self, unit: int) -> dict[str, Any] | None:
        """The record of a unit, None if there is none. CacheError if it is damaged or was made for another cache."""
        if unit not in self._seen:
            path = self.path(unit)
            try:
                self._seen[unit] = self._checked(unit, path.read_bytes())
            except FileNotFoundError:
                return None
            except OSError as error:
                raise CacheError(f"{path} can not be read: {error}") from error
            except ValueError as error:
                raise CacheError(f"{path}: {error}; delete this file and extract again to redo unit {unit}") from None
        return self._seen[unit]

    def bytes_of(self, unit: int, shards: Mapping[str, Any], record: Mapping[str, Any]) -> bytes:
        """What the file of a unit holds. shards: {array: {bytes, sha256, slots}}; record: the caller's, JSON values."""
        return seal({"unit": unit, "plan": self.plan, "shards": dict(shards), "record": dict(record)})

    def put(self, unit: int, data: bytes) -> None:
        """Commit. Equal bytes that are there already are fine; CacheError if they are others."""
        try:
            write_whole(self.path(unit), data, self.root / "tmp", absent=True)
        except FileExistsError:
            self.require_equal(unit, data)

    def require_equal(self, unit: int, data: bytes) -> None:
        if self.path(unit).read_bytes() != data:
            raise CacheError(
                f"{self.path(unit)}: unit {unit} is committed with other content; the committed one is kept. The same "
                "plan gives the same bytes only on one device model and one set of library versions"
            )

    def _checked(self, unit: int, data: bytes) -> dict[str, Any]:
        record = unseal(data)
        if (found := record.get("unit")) != unit:
            raise ValueError(f"it is the record of unit {found}")
        if record.get("plan") != self.plan:
            raise ValueError("it belongs to a cache with another identity or plan")
        return record
