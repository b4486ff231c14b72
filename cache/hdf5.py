"""A complete cache in one HDF5 file, read in place: for reading, `H5Cache` does what `Store` does.

    cache = H5Cache.open("priors.h5")            # made by cache.transfer.export
    cache.read("attention", 10, 12)

    KIND/arrays/NAME  [slots, *item_shape], chunked as the Zarr array, fletcher32 on every chunk, not compressed
    KIND/files/NAME   cache.json and every metadata file, as bytes
    KIND/commits      the units' commit records, joined; KIND/commit_ends: where each of them ends, uint64 as bytes

KIND is "priors" or "images". `cache/container.py` says what else is in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final, get_args

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache import shards
from cache.commits import parsed
from cache.container import AGAIN, Container, Progress, quiet
from cache.create import META, plan_fields
from cache.identity import digest, table_digest
from cache.layout import ArraySpec, Kind, Meta
from cache.places import Folder, Place
from manifests.errors import CacheError

COMMIT_ENDS: Final = "<u8"


class H5Cache:
    """One cache of a file. Can be pickled and forked; threads may share it, but HDF5 lets them read one by one."""

    def __init__(self, path: Path, kind: Kind) -> None:
        """Raises CacheError unless the file is whole and all the cache's metadata is as it was exported."""
        self.path, self.kind = path, kind
        self._file = Container(path)
        with self._file.errors():
            if kind not in (names := self._file.names()):
                raise CacheError(
                    f"{path} holds no cache of {kind}, only {', '.join(names) or 'nothing'}; check the path"
                )
            self.meta = Meta.from_bytes(self._bytes(f"files/{META}").to_pybytes())
            if (self.meta.kind, self.meta.state) != (kind, "complete"):
                raise ValueError(f"its {META} is of a {self.meta.state} cache of {self.meta.kind}")
            self._plan = digest(plan_fields(self.meta))
            for name in self.meta.files:
                self.file(name)
            for spec in self.meta.arrays.values():
                self._array(spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return H5Cache, (self.path, self.kind)

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: Kind | None = None) -> H5Cache:
        """The cache of a kind in a file; without a kind the priors, or else the images."""
        absolute = Path(path).absolute()
        return cls(absolute, kind or cls.kinds(absolute)[0])

    @classmethod
    def kinds(cls, path: Path) -> list[Kind]:
        """Which caches a file holds, priors first. CacheError for a file that is none of ours, or holds none."""
        file = Container(path)
        with file.errors():
            if not (found := [kind for kind in get_args(Kind) if kind in file.names()]):
                raise ValueError("it holds neither priors nor images")
        return found

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def place(self) -> Place:
        """The folder of the file: what the cache's own folder was to the paths in it."""
        return Folder(self.path.parent)

    @property
    def complete(self) -> bool:
        return True  # others are neither exported nor opened

    def committed_units(self) -> list[int]:
        return list(range(self.meta.units))

    def missing_units(self) -> list[int]:
        return []

    def reference(self) -> dict[str, Any]:
        """As `Store.reference`."""
        name = "rows.parquet"
        rows = pq.read_table(pa.BufferReader(self.file(name))) if name in self.meta.files else None
        return {"identity": self.meta.identity, "rows": None if rows is None else table_digest(rows)}

    def stored_bytes(self) -> dict[str, int]:
        """As `Store.stored_bytes`; nothing is compressed here."""
        return {name: self.meta.units * spec.shard_bytes for name, spec in self.meta.arrays.items()}

    def failures(self) -> list[dict[str, Any]]:
        """All of failures.jsonl."""
        return [json.loads(line) for line in self.file("failures.jsonl").to_pybytes().splitlines()]

    def file(self, name: str) -> pa.Buffer:
        """A metadata file, mapped from the disk and compared with its digest. CacheError if damaged or unknown."""
        if (expected := self.meta.files.get(name)) is None:
            raise CacheError(f"{self.path} has no metadata file {name!r}, only {', '.join(sorted(self.meta.files))}")
        with self._file.errors():
            data = self._bytes(f"files/{name}")
            if hashlib.sha256(data).hexdigest() != expected:
                raise ValueError(f"{name} does not have the sha256 that {META} names")
        return data

    def commit(self, unit: int) -> tuple[bytes, dict[str, Any]]:
        """The commit record of a unit: its file, and that parsed. CacheError if damaged or of another cache."""
        with self._file.errors(f"the commit record of unit {unit} is damaged"):
            ends = np.frombuffer(self._bytes("commit_ends"), COMMIT_ENDS)
            if len(ends) != self.meta.units:
                raise ValueError(f"there are {len(ends)} records for {self.meta.units} units")
            first, last = int(ends[unit - 1]) if unit else 0, int(ends[unit])
            data = self._bytes("commits")[first:last].to_pybytes()
            return data, parsed(data, unit, self._plan)

    def read(self, array: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Slots [start, stop) of an array: [stop - start, *item_shape], every chunk checked; in `out` if it is given.

        Raises CacheError for slots that there are not, and for damage, naming the unit.
        """
        spec = self.meta.arrays.get(array)
        if spec is None:
            raise CacheError(f"{self.path} has no array {array!r}, only {', '.join(sorted(self.meta.arrays))}")
        size = spec.slots_per_unit
        if not 0 <= start <= stop <= self.meta.units * size:
            raise CacheError(f"{self.path}: array {array} has no slots {start} to {stop}")
        values = np.empty((stop - start, *spec.item_shape), spec.dtype) if out is None else out
        if (values.shape, values.dtype) != ((stop - start, *spec.item_shape), spec.dtype):
            raise ValueError(f"`out` is {values.dtype} {values.shape}, array {array} needs another one")
        for unit in range(start // size, -(-stop // size) if stop > start else 0):
            first, last = max(start, unit * size), min(stop, (unit + 1) * size)
            with self._file.errors(f"array {array}, unit {unit} is damaged"):
                _read_into(values[first - start : last - start], self._array(spec), first)
        return values

    def advise(self, name: str, start: int, stop: int) -> None:
        """Nothing: HDF5 does not tell where in the file a chunk lies without reading its index."""

    def unit(self, unit: int) -> dict[str, np.ndarray]:
        """The whole unit of every array. CacheError unless it is what was committed, to the bit."""
        commit, arrays = self.commit(unit)[1], {}
        for name, spec in self.meta.arrays.items():
            first = unit * spec.slots_per_unit
            arrays[name] = self.read(name, first, first + spec.slots_per_unit)
            if not as_committed(spec, arrays[name], commit):
                raise CacheError(f"{self.path}: array {name}, unit {unit} is not what was committed; {AGAIN}")
        return arrays

    def verify(self, progress: Progress = quiet) -> list[str]:
        """Read every byte of the file, whatever cache it belongs to; one line per problem, [] for a sound file.

        The whole file is compared with its digest, and every unit of every cache in it with its commit record.
        """
        changed = self._file.changed(progress)
        problems = [changed] if changed else []
        try:
            for kind in self.kinds(self.path):
                problems += H5Cache(self.path, kind).damaged_units(progress)
        except CacheError as error:
            problems.append(str(error))
        return problems

    def damaged_units(self, progress: Progress = quiet) -> list[str]:
        """Compare every unit with its commit record; one line per problem."""
        problems = []
        for unit in self.committed_units():
            try:
                self.unit(unit)
            except CacheError as error:
                problems.append(str(error))
            progress(f"check {self.kind}", (unit + 1) * self.meta.unit_bytes, self.meta.units * self.meta.unit_bytes)
        return problems

    def _bytes(self, path: str) -> pa.Buffer:
        return self._file.bytes_of(f"{self.kind}/{path}")

    def _array(self, spec: ArraySpec) -> h5py.Dataset:
        return self._file.array(f"{self.kind}/arrays/{spec.name}", spec, self.meta.units)


def _read_into(out: np.ndarray, dataset: h5py.Dataset, first: int) -> None:
    """Slots from `first` on. What dataset.read_direct does, a fifth faster: it makes selections out of slices."""
    space = dataset.id.get_space()
    space.select_hyperslab((first, *[0] * (out.ndim - 1)), out.shape)
    dataset.id.read(h5py.h5s.create_simple(out.shape), space, out)


def as_committed(spec: ArraySpec, values: np.ndarray, commit: dict[str, Any]) -> bool:
    """Is the shard of these values, to the bit, the one that was committed?"""
    return shards.digest(shards.encode(spec, values)[0]) == commit["shards"][spec.name].blake3
