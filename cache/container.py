"""The HDF5 file that carries caches: its header, its digest, and how to open what is inside without being led astray.

    0..511   a record of ours: the length of the file and the sha256 of all bytes that follow
    512..    HDF5 (this is what it calls a user block): groups, arrays, and rows of bytes

A file may come from anywhere: no link is followed out of it, no filter is run but fletcher32, nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pyarrow as pa

from cache.identity import seal, unseal
from cache.layout import ArraySpec
from manifests.errors import CacheError

SUFFIXES: Final = (".h5", ".hdf5")
HEADER: Final = 512  # bytes; the smallest user block that HDF5 allows
AGAIN: Final = "copy the file again from where it was made, or export the cache again"
_FORMAT: Final = "frozen-lmm-grounding cache in HDF5"
_SCHEMA: Final = 1
_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_BLOCK: Final = 1 << 18
# what h5py raises for files that are damaged or were made by an enemy; too little memory is no reason to call it damage
_UNREADABLE: Final = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many bytes of how many are done: ("write priors", 1_000, 5_000)."""


def quiet(_: str, __: int, ___: int) -> None:
    """A Progress that shows nothing."""


def is_file(path: str | os.PathLike[str]) -> bool:
    """Is this the path of an HDF5 file rather than of a folder? By its name, or because a file is there."""
    return Path(path).suffix in SUFFIXES or Path(path).is_file()


class Container:
    """An open file. Every process opens it for itself, also after a fork; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises CacheError unless the header is ours and the file as long as it says."""
        self.path = path
        self.header = _read_header(path)
        self._lock = threading.Lock()
        self._process = -1
        self._opened: tuple[dict[str, h5py.Dataset], h5py.File]

    def __reduce__(self) -> tuple[Any, ...]:
        return Container, (self.path,)

    def names(self) -> list[str]:
        """The members at the top of the file."""
        return sorted(self._root()[1])

    def array(self, path: str, spec: ArraySpec, units: int) -> h5py.Dataset:
        """The array of a spec. ValueError unless it is laid out so, with fletcher32 as its only filter."""
        known = self._root()[0]
        if path not in known:
            known[path] = _checked(self._find(path), spec, units)
        return known[path]

    def bytes_of(self, path: str) -> pa.Buffer:
        """A row of bytes, mapped into memory: it lies in one piece in the file. ValueError for anything else."""
        dataset = self._find(path)
        if dataset.dtype != np.uint8 or dataset.ndim != 1 or dataset.chunks is not None:
            raise ValueError(f"{path} is not a row of bytes")
        if not dataset.size:
            return pa.py_buffer(b"")
        with pa.memory_map(str(self.path)) as file:
            file.seek(dataset.id.get_offset())
            data = file.read_buffer(dataset.size)
        if data.size != dataset.size:
            raise ValueError(f"{path} is cut off")
        return data

    def changed(self, progress: Progress = quiet) -> str | None:
        """One line if the file's content is not, to the bit, what was written; reads all of it."""
        found, expected = content_digest(self.path, progress), self.header["digest"]
        wrong = f"{self.path} was changed: the sha256 of its content is {found}, {expected} was written; {AGAIN}"
        return None if found == expected else wrong

    @contextmanager
    def errors(self, what: str = "it is damaged") -> Iterator[None]:
        """Whatever a damaged file makes h5py raise becomes a CacheError of one line with the cure."""
        try:
            yield
        except CacheError:
            raise
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CacheError(f"{self.path}: {what} ({reason}); {AGAIN}") from error

    def _find(self, path: str) -> h5py.Dataset:
        """A dataset by its path; every step of it must lie in this very file."""
        *folders, last = path.split("/")
        found: Any = self._root()[1]
        for folder in folders:
            found = _member(found, folder, h5py.Group)
        dataset = _member(found, last, h5py.Dataset)
        if dataset.external is not None or dataset.is_virtual:
            raise ValueError(f"the data of {path} lies in other files")
        return dataset

    def _root(self) -> tuple[dict[str, h5py.Dataset], h5py.File]:
        """This process's arrays and open file."""
        with self._lock:
            if self._process != os.getpid():  # what a fork inherits belongs to the parent
                self._opened = {}, h5py.File(self.path, "r", locking=False)  # it never changes: nothing to lock
                self._process = os.getpid()
            return self._opened


def content_digest(path: Path, progress: Progress = quiet, *, from_disk: bool = False) -> str:
    """sha256 (hex) of all that follows the header. `from_disk`: drop the (synced) pages first: the disk answers."""
    hasher, total, block = hashlib.sha256(), path.stat().st_size, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(HEADER)
        while count := file.readinto(block):
            hasher.update(block[:count])
            progress("digest", file.tell(), total)
    return hasher.hexdigest()


def header_bytes(size: int, digest: str) -> bytes:
    """The header of a file of `size` bytes (header included) with that content digest."""
    return seal({"format": _FORMAT, "schema": _SCHEMA, "bytes": size, "digest": digest}).ljust(HEADER)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data, size = file.read(HEADER), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CacheError(f"{path} can not be read: {error.strerror}; check the path") from None
    if data.startswith(_SIGNATURE):
        raise CacheError(f"{path} is an HDF5 file, but none that `cache export` wrote; check the path")
    try:
        record = unseal(data.rstrip(b" "))
        if (record["format"], record["schema"]) != (_FORMAT, _SCHEMA):
            raise ValueError(f"format and schema are {record['format']} {record['schema']}, not {_FORMAT} {_SCHEMA}")
        if header_bytes(record["bytes"], record["digest"]) != data:
            raise ValueError("its header has another length")
    except (ValueError, KeyError, RecursionError) as error:
        raise CacheError(f"{path} is no cache that `cache export` wrote, or damaged ({error}); {AGAIN}") from None
    if record["bytes"] != size:
        raise CacheError(f"{path} is {size:,} bytes long, {record['bytes']:,} were written; {AGAIN}")
    return record


def _member(group: h5py.Group, name: str, kind: type) -> Any:
    """A member of a group. ValueError for one that is missing, of another kind, or a link to another place."""
    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{name} is missing in {group.name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} in {group.name} is a link to another place")
    if not isinstance(found := group[name], kind):
        raise ValueError(f"{name} in {group.name} is not a {kind.__name__.lower()}")
    return found


def _checked(dataset: h5py.Dataset, spec: ArraySpec, units: int) -> h5py.Dataset:
    shape, chunks = (units * spec.slots_per_unit, *spec.item_shape), (spec.slots_per_chunk, *spec.item_shape)
    made = dataset.id.get_create_plist()
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    found = (dataset.shape, dataset.dtype, dataset.chunks, filters)
    if found != (shape, np.dtype(spec.dtype).newbyteorder("<"), chunks, [h5py.h5z.FILTER_FLETCHER32]):
        raise ValueError(f"array {spec.name} is not laid out as its cache.json says: {found}")
    return dataset
