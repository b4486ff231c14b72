"""Shards as files of a local disk: read in one system call, written so that the disk surely has them.

    with ShardFile(spec, path) as file:
        values = shards.read(spec, file.fetch, 3, 5)

    write_shards([(path, spec, values), …], scratch)

The second writes all shards of a unit side by side, and returns bytes, blake3 and crcs of each.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from cache import shards
from cache.layout import ArraySpec
from cache.shards import ShardFormatError, Written
from manifests.errors import CacheError

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")  # buffers that one system call takes
_BLOCK: Final = 1 << 20  # bytes that are read back at a time: they stay in the CPU's cache for the checksum
_WRITERS: Final = 3  # files of a unit that are on their way at a time: while one waits for the disk another is copied
_EARLY: Final = 4 << 20  # bytes after which the disk is told to begin


class ShardFile:
    """A shard's file, open for one read: a cache may have more shards than a process may have open files.

    size: bytes that it was committed with; needed for a compressed one.
    Raises ShardFormatError for a file of another size, OSError if it is missing or can not be read.
    """

    __slots__ = ("handle",)

    def __init__(self, spec: ArraySpec, path: str | os.PathLike[str], size: int | None = None) -> None:
        expected = spec.shard_bytes if size is None else size
        self.handle = os.open(path, os.O_RDONLY)
        if (found := os.lseek(self.handle, 0, os.SEEK_END)) != expected:
            os.close(self.handle)
            raise ShardFormatError(f"the file has {found} bytes, a shard of array {spec.name} has {expected}")

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def fetch(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """The `Fetch` of this file. ShardFormatError if it ends before the buffers are full."""
        while buffers:
            count = os.preadv(self.handle, buffers[:_IOV_MAX], offset)
            if not count:
                raise ShardFormatError(f"the file ends at byte {offset}")
            offset, buffers = offset + count, _rest(buffers, count)


def advise(path: str | os.PathLike[str], offset: int, length: int) -> None:
    """Ask the kernel to read these bytes ahead, and return at once. OSError if there is no such file."""
    if not hasattr(os, "posix_fadvise"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)


def write_shards(unit: Sequence[tuple[Path, ArraySpec, np.ndarray]], scratch: Path) -> list[Written]:
    """Put all shards of a unit on disk, durably, and read each one back; the folders exist.

    A shard gets its own name only after what was written has been given back. It may be the kernel's memory that
    answers: asking the disk would double its traffic, and what it loses later is found by reading and by `verify`.
    scratch: a folder on the same file system for temporary names.
    Raises OSError (a full disk, …) or CacheError (other bytes came back); then no temporary file is left, but some of
    the shards may have got their names.
    """
    tasks: dict[int, tuple[Future[str], Future[int], np.ndarray]] = {}
    with ThreadPoolExecutor(_WRITERS) as writers, ThreadPoolExecutor(1) as hasher:
        # the largest first: the small ones, which mostly wait for the disk, hide behind them
        for index in sorted(range(len(unit)), key=lambda i: -unit[i][1].shard_bytes):
            path, spec, values = unit[index]
            buffers, crcs = shards.encode(spec, values)
            put = writers.submit(_put, path, buffers, scratch)
            tasks[index] = hasher.submit(shards.digest, buffers), put, crcs
        sizes = {index: put.result() for index, (_, put, _) in tasks.items()}
        list(writers.map(sync_folder, {path.parent for path, _, _ in unit}))  # together they cost little more than one
    return [
        Written(bytes=sizes[index], blake3=tasks[index][0].result(), crcs=tasks[index][2]) for index in range(len(unit))
    ]


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut: a rename alone lives in memory for a while."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(path: Path, buffers: Sequence[np.ndarray], scratch: Path) -> int:
    """Write a file, read every byte of it back, and only then give it its name; -> its bytes."""
    temporary = scratch / uuid.uuid4().hex
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            size = _write(handle, buffers)
            if not _holds(handle, buffers):  # while the disk is busy with the file
                raise CacheError(
                    f"{path}: other bytes came back than were written; nothing was committed; check memory and disk, "
                    "and run the same command again"
                )
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        return size
    finally:
        temporary.unlink(missing_ok=True)


def _write(handle: int, buffers: Sequence[np.ndarray]) -> int:
    """These bytes to a new file; the disk begins with the first ones meanwhile; -> how many."""
    offset = 0
    for batch in _batches(buffers):
        start = offset
        left: Sequence[memoryview] = batch
        while left:
            count = os.writev(handle, left[:_IOV_MAX])
            offset, left = offset + count, _rest(left, count)
        _flush(handle, start, offset - start)
    return offset


def _batches(buffers: Sequence[np.ndarray]) -> Iterator[list[memoryview]]:
    """The buffers in groups of `_EARLY` bytes or a little more."""
    batch, length = list[memoryview](), 0
    for buffer in buffers:
        batch.append(buffer.data)
        length += buffer.nbytes
        if length >= _EARLY:
            yield batch
            batch, length = [], 0
    yield batch


def _flush(handle: int, offset: int, length: int) -> None:
    """Linux begins to write dirty pages that it is told are not needed any more, and forgets clean ones."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)


def _holds(handle: int, buffers: Sequence[np.ndarray]) -> bool:
    """Does a file hold these bytes, and no others?"""
    block, offset = np.empty(_BLOCK, np.uint8), 0
    for buffer in buffers:
        for start in range(0, buffer.nbytes, _BLOCK):
            expected = buffer[start : start + _BLOCK]
            found = block[: expected.nbytes]
            left: Sequence[memoryview] = [found.data]
            while left and (count := os.preadv(handle, left, offset)):
                offset, left = offset + count, _rest(left, count)
            if left or not np.array_equal(found, expected):
                return False
    return os.fstat(handle).st_size == offset


def _rest(buffers: Sequence[memoryview], count: int) -> Sequence[memoryview]:
    """What is left of the buffers after their first `count` bytes: a system call may take a part of them only."""
    for index, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer[count:], *buffers[index + 1 :]]
        count -= buffer.nbytes
    return []
