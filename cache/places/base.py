"""What a cache needs of the place where it lies: named objects that are whole or not there, and locks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from cache.layout import ArraySpec
from cache.shards import Written

LOCK: Final = "cache.lock"  # while a run writes: who it is
SCRATCH: Final = "tmp"  # temporary names of files on their way; whatever a kill left there is deleted on resume


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """What a folder lies on."""

    device: int
    free: int
    """Bytes."""


class Opened(Protocol):
    """A shard, open for one read."""

    def fetch(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """`shards.Fetch`."""


class Place(ABC):
    """Objects are named by paths relative to the place, "commits/000001.json". Every error is an OSError."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        """The folder or URL, for messages, and all that another process needs to find the place."""

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)

    @abstractmethod
    def path(self, name: str) -> str:
        """What a message calls an object."""

    @abstractmethod
    def at(self, relative: str) -> Place:
        """The place that `relative` names, seen from here: "images", "../other", or a path or URL of its own."""

    @abstractmethod
    def relative(self, other: Place) -> str:
        """The other way round: `self.at(self.relative(other)) == other`."""

    @abstractmethod
    def entries(self) -> list[str]:
        """Names of what lies directly here, sorted, "/" after folders. NotADirectoryError if this is a file."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Every object below a folder, by name, with its bytes; empty if there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """FileNotFoundError if it is missing."""

    @abstractmethod
    def source(self, name: str) -> Any:
        """A metadata file as pyarrow.parquet.ParquetFile takes it: a path, or a buffer."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes; None if it is missing."""

    @abstractmethod
    def digest(self, name: str) -> str:
        """sha256 (hex) of the content. FileNotFoundError if it is missing."""

    @abstractmethod
    def opened(self, spec: ArraySpec, name: str, size: int) -> AbstractContextManager[Opened]:
        """To read parts of a shard. FileNotFoundError if it is missing, ShardFormatError if it has another size."""

    @abstractmethod
    def mapped(self, spec: ArraySpec, name: str) -> np.ndarray | None:
        """A shard's bytes, uint8, where they can be mapped into memory. Errors as of `opened`."""

    @abstractmethod
    def advise(self, name: str, offset: int, length: int) -> None:
        """These bytes will be read soon."""

    @abstractmethod
    def write(self, name: str, data: bytes, *, absent: bool = False) -> None:
        """Put an object, durably, whole or not at all. absent: FileExistsError if it is there."""

    @abstractmethod
    def write_shards(self, unit: Mapping[str, tuple[ArraySpec, np.ndarray]]) -> dict[str, Written]:
        """Put a unit's shards, by name, and read back what arrived. CacheError if other bytes came back."""

    @abstractmethod
    def read_beside(self, ending: str) -> bytes:
        """An object beside the place, called as the place is with `ending`. FileNotFoundError if it is missing."""

    @abstractmethod
    def write_beside(self, ending: str, data: bytes) -> None:
        """Put that object, whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object, durably, if it is there."""

    @abstractmethod
    def remove_below(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there."""

    @abstractmethod
    def prepare(self, folders: Sequence[str]) -> None:
        """Make the place, its lock file (so that it is known as ours) and, where places have folders, these."""

    @abstractmethod
    def sole_writer(self) -> AbstractContextManager[None]:
        """Hold the place for one run. CacheError, at once, if a living run has it: who, where, and since when.

        What a dead run left is recognised and taken over.
        """

    @abstractmethod
    def unit(self, number: int) -> AbstractContextManager[None]:
        """Hold one unit while it is written, against every other process."""

    @abstractmethod
    def require_run(self) -> None:
        """CacheError if the run that this process works for has lost the place; before whatever can not be undone."""

    @abstractmethod
    def clean(self) -> None:
        """Delete what kills left behind, unless somebody is writing."""

    @abstractmethod
    def disk(self) -> Disk | None:
        """None where no limit is known."""
