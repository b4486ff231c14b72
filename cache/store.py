"""A cache on disk: a folder of sharded Zarr arrays in which a unit exists from the moment its commit record does.

    store = Store.create_or_resume(root, kind="priors", identity=..., soft=..., arrays=[...], units=3, files={...})
    for unit in store.missing_units():
        store.write_unit(unit, {"attention": ...}, {"samples": 40, "failures": []})
    store.finish(planned_failures)
    Store.open(root).read("attention", 10, 12)

    cache.json  cache.lock  manifest.parquet  rows.parquet  failures.jsonl  tmp/
    commits/UNIT.json  KIND.zarr/ARRAY/c.UNIT.0.0

Any number of processes may write units of one cache, each with its own `Store`; two that write the same unit take
turns, and the second one only compares. The same plan gives the same bytes, file for file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import zarr
from zarr.storage import LocalStore

from cache import create
from cache.checks import check_failures, check_names, check_values
from cache.commits import Commits
from cache.files import locked, size_and_sha256, sync_folder, write_whole
from cache.identity import canonical_json, plain, table_digest
from cache.layout import ArraySpec, Kind, Meta, encode_shard
from manifests.errors import CacheError

FAILURES: Final = "failures.jsonl"
SUBJECT: Final = {"priors": "sample", "images": "image"}  # what the row number in a failure's entry counts


class Store:
    """One cache. Open it with `create_or_resume` or `open`; both check the metadata's checksums."""

    def __init__(self, root: Path, meta: Meta) -> None:
        self.root, self.meta = root, meta
        self.commits = Commits(root, create.plan_fields(meta))
        self._arrays: dict[str, zarr.Array] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.root, self.meta)  # open arrays stay behind: every process opens its own

    @classmethod
    def create_or_resume(
        cls,
        root: str | os.PathLike[str],
        *,
        kind: Kind,
        identity: Mapping[str, Any],
        soft: Mapping[str, Any],
        arrays: Sequence[ArraySpec],
        units: int,
        files: Mapping[str, Path | bytes],
        overwrite: bool = False,
        option: str = "--cache",
    ) -> Store:
        """The cache at `root`, made new, or the existing one if it is the same, to write its missing units.

        identity, soft: JSON values; a difference in `identity` (or arrays, units, files) raises IdentityMismatch that
        names every field with both values, one in `soft` is logged as a warning and the first run's values stay.
        files: metadata files, by name in the cache: "manifest.parquet", "rows.parquet".
        overwrite: a cache of ours at `root` that is another one is deleted first (caches in its subfolders stay).
        option: the command's option that chose `root`, for messages; they offer --overwrite for "--cache" only.
        Raises CacheError, before anything is written, for a folder that is not ours and for too little free disk.
        """
        if units < 1:
            raise CacheError(f"{root}: there is nothing to extract: the plan has no unit (did every sample fail?)")
        meta = Meta(
            kind=kind, units=units, identity=plain(dict(identity)), soft=plain(dict(soft)),
            arrays={spec.name: spec for spec in arrays}, files={}, state="planned",
        )  # fmt: skip
        path = Path(root).absolute()  # workers may have another current folder
        return cls(path, create.create_or_resume(path, meta, files, overwrite, option))

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Store:
        """An existing cache, complete or not. Raises CacheError if there is none, or its metadata is damaged."""
        path = Path(root).absolute()
        return cls(path, create.read_meta(path))

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def complete(self) -> bool:
        return self.meta.state == "complete"

    @property
    def planned_units(self) -> range:
        return range(self.meta.units)

    def committed_units(self) -> list[int]:
        """Units that exist now, sorted. CacheError for a damaged commit record."""
        return [unit for unit in self.commits.units() if unit < self.meta.units]

    def missing_units(self) -> list[int]:
        """What is left to extract: planned and not committed, sorted."""
        committed = set(self.committed_units())
        return [unit for unit in self.planned_units if unit not in committed]

    def reference(self) -> dict[str, Any]:
        """What another cache records to name this one: its identity, and the digest of its rows where it has them."""
        rows = self.root / "rows.parquet"
        return {"identity": self.meta.identity, "rows": table_digest(pq.read_table(rows)) if rows.is_file() else None}

    def write_unit(self, unit: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
        """Write one unit and commit it. arrays: for every array the whole unit, [slots_per_unit, *item_shape].

        record: JSON values for the commit; `record["failures"]` (optional) is a list of {"sample" or "image": row,
        "reason": text, ...}. No times, paths or process numbers: the same plan must give the same bytes.
        Raises CacheError, and commits nothing, for a wrong shape, dtype or name, for a value that is not finite, for
        a full disk, and if the unit is committed already with other content (the committed one is not touched).
        """
        if unit not in self.planned_units:
            raise CacheError(f"{self.root}: there is no unit {unit}, the plan has {self.meta.units}")
        record = plain(dict(record))
        check_failures(record.get("failures", []), SUBJECT[self.meta.kind])
        check_names(set(arrays), set(self.meta.arrays))
        for name, spec in self.meta.arrays.items():
            check_values(spec, unit, arrays[name])
        with self._disk_errors(unit), locked(self.root / create.LOCK, unit, 1):
            exists = self.commits.get(unit) is not None
            shards = {name: self._shard(spec, unit, arrays[name], exists) for name, spec in self.meta.arrays.items()}
            data = self.commits.bytes_of(unit, shards, record)
            if exists:
                self.commits.require_equal(unit, data)
            else:
                self.commits.put(unit, data)

    def finish(self, planned_failures: Sequence[Mapping[str, Any]] = ()) -> None:
        """Close a cache whose units are all committed: writes failures.jsonl (those of the commits and
        `planned_failures`: what the planner gave up on), then state "complete". Repeating it changes nothing.
        """
        subject = SUBJECT[self.meta.kind]
        planned = [plain(dict(failure)) for failure in planned_failures]
        check_failures(planned, subject)
        with self._disk_errors(None), locked(self.root / create.LOCK):
            if missing := self.missing_units():
                raise CacheError(
                    f"{self.root}: {len(missing)} of {self.meta.units} units are missing (the first is {missing[0]}); "
                    "run extract again to resume"
                )
            entries = planned + self._committed_failures()
            entries.sort(key=lambda entry: (entry[subject], canonical_json(entry)))
            data = b"".join(canonical_json(entry) + b"\n" for entry in entries)
            stored = create.read_meta(self.root)
            meta = replace(stored, files=stored.files | {FAILURES: hashlib.sha256(data).hexdigest()}, state="complete")
            if stored.state == "complete" and meta.files != stored.files:
                raise CacheError(f"{self.root} is complete with other failures than these; its {FAILURES} is kept")
            write_whole(self.root / FAILURES, data, self.root / create.SCRATCH)
            write_whole(self.root / create.META, meta.to_bytes(), self.root / create.SCRATCH)
            self.meta = meta

    def failures(self) -> list[dict[str, Any]]:
        """What has failed so far: all of failures.jsonl if the cache is complete, else that of the committed units."""
        if not self.complete:
            return self._committed_failures()
        return [json.loads(line) for line in (self.root / FAILURES).read_bytes().splitlines()]

    def file(self, name: str) -> bytes:
        """A metadata file, compared with its digest. CacheError if it is unknown, missing or damaged."""
        if name not in self.meta.files:
            raise CacheError(f"{self.root} has no metadata file {name!r}, only {', '.join(sorted(self.meta.files))}")
        try:
            data = (self.root / name).read_bytes()
        except OSError as error:
            raise CacheError(f"{self.root / name} can not be read: {error.strerror}; restore the file") from error
        if hashlib.sha256(data).hexdigest() != self.meta.files[name]:
            raise CacheError(f"{self.root / name} is damaged or was changed; restore the file")
        return data

    def read(self, array: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Slots [start, stop) of an array: [stop - start, *item_shape], crc-checked, writable; in `out` if given.

        Raises CacheError if any of them belongs to a unit that is not committed, or is damaged on disk.
        """
        spec = self.meta.arrays.get(array)
        if spec is None:
            raise CacheError(f"{self.root} has no array {array!r}, only {', '.join(sorted(self.meta.arrays))}")
        if not 0 <= start <= stop <= self.meta.units * spec.slots_per_unit:
            raise CacheError(f"{self.root}: array {array} has no slots {start} to {stop}")
        if start == stop:
            return np.empty((0, *spec.item_shape), spec.dtype)
        size = spec.slots_per_unit
        parts = [
            self._read_unit(spec, unit, max(start, unit * size), min(stop, (unit + 1) * size))
            for unit in range(start // size, (stop - 1) // size + 1)
        ]
        if out is not None:
            return np.concatenate(parts, out=out, casting="no")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def verify(self) -> list[str]:
        """Read everything and compare it with the checksums; one line per problem, [] for a sound cache."""
        problems = create.damaged_files(self.root, self.meta)
        for unit in self.planned_units:
            try:
                commit = self.commits.get(unit)
            except CacheError as error:
                problems.append(str(error))
                continue
            if commit is not None:
                found = [self._damage(spec, unit, commit) for spec in self.meta.arrays.values()]
                problems += [problem for problem in found if problem]
            elif self.complete:
                problems.append(f"unit {unit}: the cache is complete but {self.commits.path(unit)} is missing")
        return problems

    def _shard(self, spec: ArraySpec, unit: int, values: np.ndarray, exists: bool) -> dict[str, Any]:
        """Encode one shard and, unless the unit is committed, put it on disk and read it back. -> its commit entry."""
        zarr_json = (self._folder(spec) / "zarr.json").read_bytes()
        data = encode_shard(zarr_json, spec, unit, values)
        intended = (data.nbytes, hashlib.sha256(data).hexdigest())
        if not exists:
            path = self._path(spec, unit)
            write_whole(path, data, self.root / create.SCRATCH)
            if size_and_sha256(path, from_disk=True) != intended:
                raise CacheError(f"{path}: the disk gave back other bytes than were written; nothing was committed")
        return {"bytes": intended[0], "sha256": intended[1], "slots": spec.slots_per_unit}

    def _read_unit(self, spec: ArraySpec, unit: int, start: int, stop: int) -> np.ndarray:
        commit = self.commits.get(unit)
        if commit is None:
            raise CacheError(
                f"{self.root}: slots {start} to {stop} of {spec.name} belong to unit {unit}, which is not extracted "
                "yet; run extract again to resume"
            )
        try:
            # without this, zarr reads a shard that is gone as zeros
            if (size := self._path(spec, unit).stat().st_size) != commit["shards"][spec.name]["bytes"]:
                raise ValueError(f"its file has {size} bytes, {commit['shards'][spec.name]['bytes']} were committed")
            return np.asarray(self._array(spec)[start:stop])
        except (ValueError, FileNotFoundError) as error:  # zarr's checksums raise ValueError
            raise CacheError(f"{self._damaged(spec, unit)}: {error}") from error
        except Exception as error:  # too many open files, no memory: no reason to call the data damaged
            raise CacheError(f"{self._path(spec, unit)} can not be read ({type(error).__name__}: {error})") from error

    def _damage(self, spec: ArraySpec, unit: int, commit: dict[str, Any]) -> str | None:
        expected = (commit["shards"][spec.name]["bytes"], commit["shards"][spec.name]["sha256"])
        try:
            found = size_and_sha256(self._path(spec, unit))
        except OSError as error:
            return f"{self._damaged(spec, unit)}: {error.strerror}"
        wrong = f"{self._damaged(spec, unit)}: bytes and sha256 are {found}, not {expected}"
        return None if found == expected else wrong

    def _damaged(self, spec: ArraySpec, unit: int) -> str:
        return (
            f"{self.root}: array {spec.name}, unit {unit} is damaged ({self._path(spec, unit)}); delete "
            f"{self.commits.path(unit)} and run extract again to redo the unit"
        )

    def _committed_failures(self) -> list[dict[str, Any]]:
        commits = (self.commits.get(unit) for unit in self.committed_units())
        return [failure for commit in commits if commit for failure in commit["record"].get("failures", [])]

    def _folder(self, spec: ArraySpec) -> Path:
        return self.root / self.meta.group / spec.name

    def _path(self, spec: ArraySpec, unit: int) -> Path:
        return self._folder(spec) / spec.shard_key(unit)

    def _array(self, spec: ArraySpec) -> zarr.Array:
        if spec.name not in self._arrays:
            self._arrays[spec.name] = zarr.open_array(LocalStore(self._folder(spec), read_only=True), mode="r")
        return self._arrays[spec.name]

    @contextmanager
    def _disk_errors(self, unit: int | None) -> Iterator[None]:
        """Any OSError becomes a CacheError with the cure; a full disk also gives back what the unit had taken."""
        try:
            yield
        except CacheError:
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(f"{self.root} can not be written: {error}") from error
            if unit is not None:
                self._drop(unit)
            raise CacheError(
                f"{self.root}: disk full; {len(self.committed_units())} of {self.meta.units} units committed, "
                "free space and run the same command again"
            ) from error

    def _drop(self, unit: int) -> None:
        """Remove what a failed write left of a unit, unless it is committed."""
        with locked(self.root / create.LOCK, unit, 1):
            if self.commits.get(unit) is None:
                for spec in self.meta.arrays.values():
                    self._path(spec, unit).unlink(missing_ok=True)
                    sync_folder(self._folder(spec))
