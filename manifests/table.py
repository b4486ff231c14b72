"""Tables in Parquet files that are written row group by row group, and read that way: a row when it is asked for.

    write_records(sink, schema, records, {"name": "value"})
    table = SomeTable("x.parquet")      # a `LazyTable` that says what a row is
    table[7], len(table), list(table)

Opening reads the file's footer only. Every page has a checksum, which is checked whenever the page is read.
"""

from __future__ import annotations

import operator
import os
import threading
from abc import abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, BinaryIO, ClassVar, Final, TypeAlias, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import DatasetError, PipelineError

Source: TypeAlias = str | os.PathLike[str] | pa.Buffer
"""A file, or what it holds."""
T = TypeVar("T")

GROUP: Final = 512  # rows: read alone in 2 ms; half as many would take 19 bytes an object more once it is open
MEMORY: Final = 128 << 20  # bytes for row groups that stay decoded: all of RefCOCO's train split
_OBJECTS: Final = 6  # a row as Python objects takes so many times the bytes of its columns, about


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """The one way in which tables are written; the same rows give the same bytes (of one pyarrow version)."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        write_page_checksum=True,
        write_statistics=False,  # nothing asks for them, and they are half of the footer
        store_schema=False,
    )


def write_records(
    sink: BinaryIO, schema: pa.Schema, records: Iterable[dict[str, Any]], metadata: Mapping[str, str]
) -> None:
    """Rows given as dicts, one row group in memory at a time; pa.ArrowException for values outside the schema."""
    left = iter(records)
    with parquet_writer(sink, schema) as writer:
        writer.add_key_value_metadata(dict(metadata))
        while group := list(islice(left, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=GROUP)


@dataclass(slots=True)
class _Group:
    """A row group in memory: its columns, and the rows that were asked for."""

    columns: pa.RecordBatch
    rows: dict[int, Any]

    @property
    def bytes(self) -> int:
        """Of its columns, and of the rows that are Python objects by now."""
        return self.columns.nbytes + len(self.rows) * self.columns.nbytes * _OBJECTS // self.columns.num_rows


class LazyTable(Sequence[T]):
    """The rows of a Parquet file in order, each decoded when it is asked for.

    The row groups that were used last stay in memory, up to `memory_bytes`. Threads may share a table. A pickled table
    is its source: the other process opens it for itself.
    """

    what: ClassVar[str] = "the table"
    cure: ClassVar[str] = "restore it"
    error: ClassVar[type[PipelineError]] = DatasetError

    def __init__(self, source: Source, memory_bytes: int = MEMORY) -> None:
        self.source, self.memory_bytes = source, memory_bytes
        self._lock = threading.RLock()
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._file = self._opened()
        metadata = self._file.metadata
        self._starts = [0]  # the first row of every group, and the number of rows
        for number in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(number).num_rows)

    @abstractmethod
    def _decode(self, record: dict[str, Any]) -> T:
        """A row from its columns' values, which are of the types that `pa.RecordBatch.to_pylist` gives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.memory_bytes)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = operator.index(index)
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, there is no row {index}")
        number = bisect_right(self._starts, row) - 1
        place = row - self._starts[number]
        with self._lock:
            group = self._group(number)
            if place not in group.rows:
                group.rows[place] = self._decode(group.columns.slice(place, 1).to_pylist()[0])
            return group.rows[place]

    def __iter__(self) -> Iterator[T]:
        for number, (start, stop) in enumerate(pairwise(self._starts)):
            if start < stop:  # a table without rows has an empty group
                # not into the memory: who reads everything reads it once
                yield from map(self._decode, self._read(number).to_pylist())

    def column(self, name: str) -> pa.Array:
        """All values of one column. The others are not read."""
        return self.table([name]).column(name).combine_chunks()

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, of all columns or of these."""
        with self._reading("its rows"):
            return self._file.read(columns=columns, use_threads=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.what if isinstance(self.source, pa.Buffer) else str(self.source)

    @property
    def used(self) -> int:
        """Bytes of the row groups in memory, as `memory_bytes` counts them."""
        with self._lock:
            return sum(group.bytes for group in self._groups.values())

    def _group(self, number: int) -> _Group:
        """A row group, from memory or read; the ones used longest ago make room. The caller holds the lock."""
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        group = self._groups[number] = _Group(columns=self._read(number), rows={})
        used = self.used
        while used > self.memory_bytes and len(self._groups) > 1:
            used -= self._groups.popitem(last=False)[1].bytes
        return group

    def _read(self, number: int) -> pa.RecordBatch:
        start, stop = self._starts[number], self._starts[number + 1]
        with self._reading(f"rows {start} to {stop - 1}"):
            return self._file.read_row_group(number, use_threads=False).combine_chunks().to_batches()[0]

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """One thread at a time reads from the file; what the file does not give is the user's to mend."""
        with self._lock:
            try:
                yield
            except (OSError, pa.ArrowException) as error:
                raise self.error(f"{self.name} is damaged, {part} can not be read ({error}): {self.cure}") from None

    def _opened(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.source, page_checksum_verification=True)
        except FileNotFoundError:
            raise self.error(f"{self.name} is missing: {self.cure}") from None
        except (OSError, pa.ArrowException) as error:
            raise self.error(f"{self.name} is not a readable Parquet file ({error}): {self.cure}") from None
