"""A cache: sharded Zarr arrays in which a unit exists from the moment its commit record does.

    store = Store.create_or_resume(where, kind="priors", identity=..., soft=..., arrays=[...], units=3, files={...})
    for unit in store.missing_units():
        store.write_unit(unit, {"attention": ...}, {"samples": 40, "failures": []})
    store.finish(planned_failures)
    Store.open(where).read("attention", 10, 12)

    cache.json  cache.lock  manifest.parquet  rows.parquet  failures.jsonl  tmp/
    commits/UNIT.json  KIND.zarr/ARRAY/c.UNIT.0.0

`where` is a folder or s3://bucket/prefix. One run at a time holds `store.place.sole_writer()`; any number of its
processes may write units, each with its own `Store`; two that write the same unit take turns, and the second one only
compares. The same plan gives the same bytes, file for file.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from cache import create, shards
from cache.checks import check_failures, check_finite, check_names, check_shape
from cache.commits import Commits
from cache.create import FAILURES
from cache.identity import canonical_json, plain, table_digest
from cache.layout import ArraySpec, Kind, Meta
from cache.places import Place, Where, place_of
from cache.shards import ShardFormatError, Written
from manifests.errors import CacheError

SUBJECT: Final = {"priors": "sample", "images": "image"}  # what the row number in a failure's entry counts


class Store:
    """One cache. Open it with `create_or_resume` or `open`; both check the metadata's checksums."""

    def __init__(self, place: Place, meta: Meta) -> None:
        self.place, self.meta = place, meta
        self.commits = Commits(place, create.plan_fields(meta))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.place, self.meta)

    @classmethod
    def create_or_resume(
        cls,
        where: Where,
        *,
        kind: Kind,
        identity: Mapping[str, Any],
        soft: Mapping[str, Any],
        arrays: Sequence[ArraySpec],
        units: int,
        files: Mapping[str, bytes],
        overwrite: bool = False,
        option: str = "--cache",
    ) -> Store:
        """The cache at `where`, made new, or the existing one if it is the same, to write its missing units.

        identity, soft: JSON values; a difference in `identity` (or arrays, units, files) raises IdentityMismatch that
        names every field with both values, one in `soft` is logged as a warning and the first run's values stay.
        files: metadata files, by name in the cache: "manifest.parquet", "rows.parquet".
        overwrite: a cache of ours that is another one is deleted first (caches in its subfolders stay).
        option: the command's option that chose `where`, for messages; they offer --overwrite for "--cache" only.
        Raises CacheError, before anything is written, for a folder that is not ours and for too little free disk.
        """
        place = place_of(where)
        if units < 1:
            raise CacheError(f"{place}: there is nothing to extract: the plan has no unit (did every sample fail?)")
        meta = Meta(
            kind=kind, units=units, identity=plain(dict(identity)), soft=plain(dict(soft)),
            arrays={spec.name: spec for spec in arrays}, files={}, state="planned",
        )  # fmt: skip
        return cls(place, create.create_or_resume(place, meta, files, overwrite, option))

    @classmethod
    def open(cls, where: Where, *, check_files: bool = True) -> Store:
        """An existing cache, complete or not. Raises CacheError if there is none, or its metadata is damaged.

        check_files=False: only cache.json itself is checked, for `verify`, which says all that is wrong.
        """
        place = place_of(where)
        return cls(place, create.read_meta(place, check_files=check_files))

    @property
    def name(self) -> str:
        """For messages."""
        return self.place.name

    @property
    def complete(self) -> bool:
        return self.meta.state == "complete"

    @property
    def planned_units(self) -> range:
        return range(self.meta.units)

    def committed_units(self) -> list[int]:
        """Units that exist now, sorted."""
        return [unit for unit in self.commits.units() if unit < self.meta.units]

    def missing_units(self) -> list[int]:
        """What is left to extract: planned and not committed, sorted."""
        committed = set(self.committed_units())
        return [unit for unit in self.planned_units if unit not in committed]

    def file(self, name: str) -> Any:
        """A metadata file as pyarrow.parquet.ParquetFile takes it: a path, or a buffer. Its digest was checked."""
        return self.place.source(name)

    def reference(self) -> dict[str, Any]:
        """What another cache records to name this one: its identity, and the digest of its rows where it has them."""
        rows = "rows.parquet"
        digest = table_digest(pq.read_table(self.file(rows))) if rows in self.meta.files else None
        return {"identity": self.meta.identity, "rows": digest}

    def write_unit(self, unit: int, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
        """Write one unit and commit it. arrays: for every array the whole unit, [slots_per_unit, *item_shape].

        record: JSON values for the commit; `record["failures"]` (optional) is a list of {"sample" or "image": row,
        "reason": text, ...}. No times, paths or process numbers: the same plan must give the same bytes.
        Raises CacheError, and commits nothing, for a wrong shape, dtype or name, for a value that is not finite, for
        a full disk, and if the unit is committed already with other content (the committed one is not touched).
        """
        if unit not in self.planned_units:
            raise CacheError(f"{self.name}: there is no unit {unit}, the plan has {self.meta.units}")
        record = plain(dict(record))
        check_failures(record.get("failures", []), SUBJECT[self.meta.kind])
        check_names(set(arrays), set(self.meta.arrays))
        for name, spec in self.meta.arrays.items():
            check_shape(spec, unit, arrays[name])
        with self._disk_errors(unit), self.place.unit(unit):
            if self.commits.get(unit) is not None:
                written = {name: _encoded(spec, arrays[name]) for name, spec in self.meta.arrays.items()}
                self.commits.require_equal(unit, self.commits.bytes_of(unit, written, record))
                return
            written = self._put(unit, arrays)
            self.place.require_run()
            self.commits.put(unit, self.commits.bytes_of(unit, written, record))

    def finish(self, planned_failures: Sequence[Mapping[str, Any]] = ()) -> None:
        """Close a cache whose units are all committed: writes failures.jsonl (those of the commits and
        `planned_failures`: what the planner gave up on), then state "complete". Repeating it changes nothing.
        """
        subject = SUBJECT[self.meta.kind]
        planned = [plain(dict(failure)) for failure in planned_failures]
        check_failures(planned, subject)
        with self._disk_errors(None):
            self.place.require_run()
            if missing := self.missing_units():
                raise CacheError(
                    f"{self.name}: {len(missing)} of {self.meta.units} units are missing (the first is {missing[0]}); "
                    "run extract again to resume"
                )
            entries = planned + self._committed_failures()
            entries.sort(key=lambda entry: (entry[subject], canonical_json(entry)))
            data = b"".join(canonical_json(entry) + b"\n" for entry in entries)
            stored = create.read_meta(self.place)
            meta = replace(stored, files=stored.files | {FAILURES: hashlib.sha256(data).hexdigest()}, state="complete")
            if stored.state == "complete" and meta.files != stored.files:
                raise CacheError(f"{self.name} is complete with other failures than these; its {FAILURES} is kept")
            self.place.write(FAILURES, data)
            self.place.write(create.META, meta.to_bytes())
            self.meta = meta

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of the committed shards, by array."""
        if all(spec.codec == "raw" for spec in self.meta.arrays.values()):
            committed = len(self.committed_units())
            return {name: committed * spec.shard_bytes for name, spec in self.meta.arrays.items()}
        shards = [commit["shards"] for unit, commit in self.commits.records() if unit < self.meta.units]
        return {name: sum(each[name].bytes for each in shards) for name in self.meta.arrays}

    def reopen(self) -> None:
        """Make a complete cache one that is being written again: some of its units are to be redone."""
        files = {name: sha for name, sha in self.meta.files.items() if name != FAILURES}
        meta = replace(self.meta, files=files, state="planned")
        with self._disk_errors(None):
            self.place.require_run()
            self.place.write(create.META, meta.to_bytes())
            self.place.remove(FAILURES)
        self.meta = meta

    def failures(self) -> list[dict[str, Any]]:
        """What has failed so far: all of failures.jsonl if the cache is complete, else that of the committed units."""
        if not self.complete:
            return self._committed_failures()
        return [json.loads(line) for line in self.place.read(FAILURES).splitlines()]

    def read(
        self, name: str, start: int, stop: int, out: np.ndarray | None = None, *, check: bool = True
    ) -> np.ndarray:
        """Slots [start, stop) of an array: [stop - start, *item_shape], every chunk as it was committed.

        out: where they go, C-contiguous, of that shape and dtype; fastest where it begins on a page.
        check=False: no checksum is computed, for who trusts the disk more than the time allows.
        Raises CacheError if any of them belongs to a unit that is not committed, or is damaged.
        """
        spec = self.meta.arrays.get(name)
        if spec is None:
            raise CacheError(f"{self.name} has no array {name!r}, only {', '.join(sorted(self.meta.arrays))}")
        if not 0 <= start <= stop <= self.meta.units * spec.slots_per_unit:
            raise CacheError(f"{self.name}: array {name} has no slots {start} to {stop}")
        if out is None:
            out = shards.aligned_empty((stop - start, *spec.item_shape), spec.dtype)
        elif out.shape != (stop - start, *spec.item_shape) or out.dtype != spec.dtype:
            raise ValueError(f"`out` is {out.dtype} {list(out.shape)}, slots {start} to {stop} of {name} need another")
        for unit, first, last in self._spans(spec, start, stop):
            begin = unit * spec.slots_per_unit + first - start
            self._read_unit(spec, unit, first, last, out[begin : begin + last - first], check)
        return out

    def advise(self, name: str, start: int, stop: int) -> None:
        """These slots will be read soon: a disk may begin."""
        spec = self.meta.arrays[name]
        if spec.codec != "raw":
            return  # only the index knows where its chunks lie
        for unit, first, last in self._spans(spec, start, stop):
            self.place.advise(self._shard(spec, unit), *shards.extent(spec, first, last))

    def _spans(self, spec: ArraySpec, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(unit, first, last): slots [start, stop) by unit, counted inside it."""
        size = spec.slots_per_unit
        for unit in range(start // size, -(-stop // size)) if stop > start else ():
            yield unit, max(start - unit * size, 0), min(stop - unit * size, size)

    def _read_unit(self, spec: ArraySpec, unit: int, first: int, last: int, out: np.ndarray, check: bool) -> None:
        commit = self.commits.get(unit)
        if commit is None:
            start = unit * spec.slots_per_unit
            raise CacheError(
                f"{self.name}: slots {start + first} to {start + last} of {spec.name} belong to unit {unit}, which is "
                "not extracted yet; run extract again to resume"
            )
        put = commit["shards"][spec.name]
        try:
            if not check and spec.codec == "raw":
                data = self.place.mapped(spec, self._shard(spec, unit))
                if data is not None:
                    shards.copy(spec, data, first, last, out)
                    return
            with self.place.opened(spec, self._shard(spec, unit), put.bytes) as shard:
                shards.read(spec, shard.fetch, first, last, out=out, crcs=put.crcs, check=check, size=put.bytes)
        except (ShardFormatError, FileNotFoundError) as error:
            raise CacheError(f"{self.damaged(spec, unit)}: {error}") from error
        except OSError as error:  # too many open files, no network: no reason to call the data damaged
            raise CacheError(f"{self.place.path(self._shard(spec, unit))} can not be read: {error}") from error

    def damaged(self, spec: ArraySpec, unit: int) -> str:
        """What a message says of a damaged shard, and the cure."""
        return (
            f"{self.name}: array {spec.name}, unit {unit} is damaged ({self.place.path(self._shard(spec, unit))}); run "
            "`cache verify --repair`, then extract again to redo the unit"
        )

    def _put(self, unit: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Written]:
        """Write the shards of a unit, while it is checked that all values are finite; else they are removed again."""
        specs = {self._shard(spec, unit): spec for spec in self.meta.arrays.values()}
        with ThreadPoolExecutor(1) as thread:
            checks = [thread.submit(check_finite, spec, unit, arrays[spec.name]) for spec in specs.values()]
            put = self.place.write_shards({name: (spec, arrays[spec.name]) for name, spec in specs.items()})
        try:
            for check in checks:
                check.result()
        except CacheError:
            for name in specs:
                self.place.remove(name)
            raise
        return {spec.name: put[name] for name, spec in specs.items()}

    def _committed_failures(self) -> list[dict[str, Any]]:
        records = (commit["record"] for unit, commit in self.commits.records() if unit < self.meta.units)
        return [failure for record in records for failure in record.get("failures", [])]

    def _shard(self, spec: ArraySpec, unit: int) -> str:
        return create.shard_name(self.meta, spec, unit)

    @contextmanager
    def _disk_errors(self, unit: int | None) -> Iterator[None]:
        """Any OSError becomes a CacheError with the cure; a full disk also gives back what the unit had taken."""
        try:
            yield
        except CacheError:
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(f"{self.name} can not be written: {error}") from error
            if unit is not None:
                self._drop(unit)
            raise CacheError(
                f"{self.name}: disk full; {len(self.committed_units())} of {self.meta.units} units committed, "
                "free space and run the same command again"
            ) from error

    def _drop(self, unit: int) -> None:
        """Remove what a failed write left of a unit, unless it is committed."""
        with self.place.unit(unit):
            if self.commits.get(unit) is None:
                for spec in self.meta.arrays.values():
                    self.place.remove(self._shard(spec, unit))


def _encoded(spec: ArraySpec, values: np.ndarray) -> Written:
    """What writing these values would give."""
    buffers, crcs = shards.encode(spec, values)
    return Written(bytes=sum(each.nbytes for each in buffers), blake3=shards.digest(buffers), crcs=crcs)
