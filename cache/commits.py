"""commits/UNIT.json: the one thing that makes a unit exist. Written last, never replaced."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from cache.identity import digest, seal, unseal
from cache.places import Place
from cache.shards import Written
from manifests.errors import CacheError

FOLDER: Final = "commits"
_FILE = re.compile(rf"{FOLDER}/(\d{{6,}})\.json")
_KEPT: Final = 2048  # records; a few KB each
_AT_ONCE: Final = 16  # requests to S3, where one takes 20 ms and 20,000 units are no rarity


class DamagedCommit(CacheError):
    """A record that is not what was committed for this unit of this cache."""


class Commits:
    """The commit records of one cache. `plan`: what the cache is (JSON values); records of another are refused.

    A record: {"unit", "plan", "record": the caller's, "shards": {array: {"bytes", "blake3", "crc32c"}}}, the
    last one the checksums of the shard's chunks, 8 hex digits each: what is read is what was committed, not merely
    something that is sound by its own checksums.
    """

    def __init__(self, place: Place, plan: dict[str, Any]) -> None:
        self.place, self.plan = place, digest(plan)
        self._kept: OrderedDict[int, dict[str, Any]] = OrderedDict()  # records never change
        self._lock = threading.Lock()

    def name(self, unit: int) -> str:
        return f"{FOLDER}/{unit:06d}.json"

    def path(self, unit: int) -> str:
        return self.place.path(self.name(unit))

    def units(self) -> list[int]:
        """All units that have a record, sorted; none of them is read."""
        names = (_FILE.fullmatch(name) for name in self.place.sizes(FOLDER))
        return sorted(int(name[1]) for name in names if name)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(unit, its record), in order, each read and checked. CacheError for a damaged one."""
        units = self.units()
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for unit, record in zip(units, threads.map(self.get, units), strict=True):
                if record is not None:
                    yield unit, record

    def get(self, unit: int) -> dict[str, Any] | None:
        """The record of a unit, its shards as `Written`; None if there is none.

        CacheError if it is damaged or was made for another cache.
        """
        with self._lock:
            if unit in self._kept:
                self._kept.move_to_end(unit)
                return self._kept[unit]
        try:
            record = parsed(self.place.read(self.name(unit)), unit, self.plan)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"{self.path(unit)} can not be read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCommit(
                f"{self.path(unit)}: {error}; run `cache verify --repair`, then extract again to redo unit {unit}"
            ) from None
        with self._lock:
            self._kept[unit] = record
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return record

    def bytes_of(self, unit: int, shards: Mapping[str, Written], record: Mapping[str, Any]) -> bytes:
        """What the file of a unit holds. shards: by array; record: the caller's, JSON values."""
        entries = {
            name: {"bytes": shard.bytes, "blake3": shard.blake3, "crc32c": _to_hex(shard.crcs)}
            for name, shard in shards.items()
        }
        return seal({"unit": unit, "plan": self.plan, "shards": entries, "record": dict(record)})

    def put(self, unit: int, data: bytes) -> None:
        """Commit. Equal bytes that are there already are fine; CacheError if they are others."""
        try:
            self.place.write(self.name(unit), data, absent=True)
        except FileExistsError:
            self.require_equal(unit, data)

    def require_equal(self, unit: int, data: bytes) -> None:
        if self.place.read(self.name(unit)) != data:
            raise CacheError(
                f"{self.path(unit)}: unit {unit} is committed with other content; the committed one is kept. The same "
                "plan gives the same bytes only on one device model and one set of library versions"
            )

    def remove(self, unit: int) -> None:
        """Take a unit back: it is missing from now on."""
        self.place.remove(self.name(unit))
        with self._lock:
            self._kept.pop(unit, None)


def parsed(data: bytes, unit: int, plan: str) -> dict[str, Any]:
    """A record from its file, its shards as `Written`. ValueError if damaged, or of another unit or plan (a digest)."""
    record = unseal(data)
    if (found := record.get("unit")) != unit:
        raise ValueError(f"it is the record of unit {found}")
    if record.get("plan") != plan:
        raise ValueError("it belongs to a cache with another identity or plan")
    shards = {
        name: Written(bytes=entry["bytes"], blake3=entry["blake3"], crcs=_from_hex(entry["crc32c"]))
        for name, entry in record["shards"].items()
    }
    return record | {"shards": shards}


def _to_hex(crcs: np.ndarray) -> str:
    return crcs.astype(">u4").tobytes().hex()


def _from_hex(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32)
