"""A cache in a folder: files that are whole or not there, and locks that end with their holder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from cache import shard_files
from cache.layout import ArraySpec
from cache.places.base import LOCK, SCRATCH, Disk, Place
from cache.places.holder import Holder
from cache.shard_files import sync_folder
from cache.shards import Written
from manifests.errors import CacheError

UNITS: Final = "units.lock"  # its byte n is held while unit n is written
_MAPPED: Final = 64  # shards: each takes addresses and an open file, no memory
# POSIX locks belong to the process: they neither exclude its threads nor survive the closing of another handle.
_ONE_WRITER_PER_PROCESS = threading.Lock()


class Folder(Place):
    """`root` is absolute: workers may have another current folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root: Final = Path(os.path.abspath(root))  # noqa: PTH100  Path.absolute keeps "..", and names are compared
        super().__init__(str(self.root))
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()
        self._mapping = threading.Lock()

    def path(self, name: str) -> str:
        return str(self.root / name)

    def at(self, relative: str) -> Place:
        from cache.places import place_of

        return place_of(relative if "://" in relative else self.root / relative)

    def relative(self, other: Place) -> str:
        return os.path.relpath(other.root, self.root) if isinstance(other, Folder) else other.name

    def entries(self) -> list[str]:
        try:
            return sorted(path.name + "/" * path.is_dir() for path in self.root.iterdir())
        except FileNotFoundError:
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for parent, _, files in os.walk(self.root / folder):
            for file in files:
                path = Path(parent, file)
                found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def source(self, name: str) -> str:
        return str(self.root / name)

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, name: str) -> str:
        with (self.root / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def opened(self, spec: ArraySpec, name: str, size: int) -> shard_files.ShardFile:
        return shard_files.ShardFile(spec, self.root / name, size)

    def mapped(self, spec: ArraySpec, name: str) -> np.ndarray:
        with self._mapping:
            if name not in self._maps:
                with shard_files.ShardFile(spec, self.root / name):  # of the right size
                    self._maps[name] = np.memmap(self.root / name, np.uint8, "r")
                if len(self._maps) > _MAPPED:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(name)
            return self._maps[name]

    def advise(self, name: str, offset: int, length: int) -> None:
        shard_files.advise(self.root / name, offset, length)

    def write(self, name: str, data: bytes, *, absent: bool = False) -> None:
        path = self.root / name
        temporary = self.root / SCRATCH / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
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

    def write_shards(self, unit: Mapping[str, tuple[ArraySpec, np.ndarray]]) -> dict[str, Written]:
        paths = [(self.root / name, spec, values) for name, (spec, values) in unit.items()]
        return dict(zip(unit, shard_files.write_shards(paths, self.root / SCRATCH), strict=True))

    def read_beside(self, ending: str) -> bytes:
        return Path(self.name + ending).read_bytes()

    def write_beside(self, ending: str, data: bytes) -> None:
        path = Path(self.name + ending)
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)

    def remove_below(self, folder: str) -> None:
        path = self.root / folder
        if path.is_symlink():  # to another disk: the link is the user's
            for child in list(path.iterdir()):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        elif path.exists():
            shutil.rmtree(path)
            sync_folder(self.root)

    def prepare(self, folders: Sequence[str]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        sync_folder(self.root.parent)
        (self.root / LOCK).touch()
        for folder in folders:
            (self.root / folder).mkdir(exist_ok=True)
            sync_folder((self.root / folder).parent)

    @contextmanager
    def sole_writer(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("a+b") as file:  # of its own: closing any handle of a file drops POSIX locks on it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CacheError(Holder.read(file).refusal(self.name)) from None
            Holder.read(file).taken_over(self.name)
            _rewrite(file, Holder.mine().to_bytes())
            try:
                yield
            finally:
                _rewrite(file, b"")

    @contextmanager
    def unit(self, number: int) -> Iterator[None]:
        with _locked(self.root / UNITS, number, 1):
            yield

    def require_run(self) -> None:
        """The kernel keeps everybody else out."""

    def clean(self) -> None:
        try:  # workers of a run that was killed may still be writing: then these files are theirs
            with _locked(self.root / UNITS, wait=False):
                for path in (self.root / SCRATCH).iterdir():
                    path.unlink()
        except BlockingIOError:
            pass

    def disk(self) -> Disk:
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        return Disk(device=existing.stat().st_dev, free=shutil.disk_usage(existing).free)


def _rewrite(file: BinaryIO, data: bytes) -> None:
    file.seek(0)
    file.truncate()
    file.write(data)
    file.flush()


@contextmanager
def _locked(path: Path, start: int = 0, length: int = 0, *, wait: bool = True) -> Iterator[None]:
    """Hold bytes [start, start + length) of a lock file against all other processes; length 0: all from `start` on.

    wait=False: BlockingIOError at once if another process holds any of it. Not reentrant: the writers of one process
    take turns.
    """
    with _ONE_WRITER_PER_PROCESS, path.open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX allows either
                raise BlockingIOError(*error.args) from None
            raise
        yield  # closing the file gives the lock back
