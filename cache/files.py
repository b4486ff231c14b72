"""Files that are whole or not there: temporary name, fsync, rename, fsync of the folder; and locks between writers."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20
# POSIX locks belong to the process: they neither exclude its threads nor survive the closing of another handle.
_ONE_WRITER_PER_PROCESS = threading.Lock()


def write_whole(path: Path, data: bytes | memoryview | Path, scratch: Path, *, absent: bool = False) -> None:
    """Put `data` (bytes, or the content of a file) at `path`, durably; a kill leaves the old state or the new one.

    scratch: a folder on the same file system for the temporary name; what a kill leaves there may be deleted.
    absent: refuse to replace: FileExistsError if `path` exists, also when another process was a moment faster.
    """
    temporary = scratch / uuid.uuid4().hex
    try:
        with temporary.open("xb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, _BLOCK)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if absent:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create one folder (its parent exists), durably; nothing happens if it is there."""
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut: a rename alone lives in memory for a while."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_and_sha256(path: Path, *, from_disk: bool = False) -> tuple[int, str]:
    """Bytes and sha256 (hex) of a file. `from_disk`: drop the (synced) pages first, so that the disk answers."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(_BLOCK):
            hasher.update(block)
        return file.tell(), hasher.hexdigest()


@contextmanager
def locked(path: Path, start: int = 0, length: int = 0, *, wait: bool = True) -> Iterator[None]:
    """Hold bytes [start, start + length) of a lock file against all other writers; length 0: everything from `start`.

    wait=False: raises BlockingIOError at once if another process holds any of it. The kernel lets go when the holder
    dies. Not reentrant: the writers of one process take turns.
    """
    with _ONE_WRITER_PER_PROCESS, path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
        yield  # closing the file gives the lock back
