"""rows.parquet, the plan and the only index of a cache: which sample lies in which unit, slots and batch.

Three kinds of slots, each with its own capacity per unit: object slots, object-token slots, answer-token slots.
A sample's objects, object tokens and answer tokens are consecutive slots of one unit; what is left over is padding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import pyarrow as pa

from cache.layout import ArraySpec
from manifests.errors import CacheError
from manifests.table import GROUP, MEMORY, LazyTable, Source, parquet_writer

_INTS = pa.list_(pa.int32())
ROW_SCHEMA: Final = pa.schema(
    [(name, pa.int32()) for name in ("sample", "unit", "batch", "length")]
    + [("slot", pa.int64()), ("objects", pa.int32()), ("token_slot", pa.int64())]
    + [("token_counts", _INTS), ("token_positions", _INTS), ("answer_slot", pa.int64())]
    + [(name, _INTS) for name in ("answer_ids", "answer_word", "answer_object")]
    + [("image", pa.int32()), ("box", _INTS), ("error", pa.string())]
)
IMAGE_SCHEMA: Final = pa.schema(
    [("image", pa.string()), ("path", pa.string())]
    + [(name, pa.int32()) for name in ("height", "width", "unit")]
    + [("slot", pa.int64()), ("box", _INTS)]
)
_INTEGERS: Final = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
BoxTuple = tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One sample of the manifest; row i is sample i. Raises ValueError for fields that contradict each other."""

    sample: int
    """Index in the manifest."""
    unit: int = -1
    """-1: failed at planning, then `error` says why and nothing else counts."""
    batch: int = -1
    """Running number of the forward pass inside the unit."""
    length: int = 0
    """Tokens to which the inputs of that batch are padded."""
    slot: int = -1
    """First object slot, counted over the whole cache."""
    objects: int = 0
    """Object slots: the sample's objects, or the words of an answer that is searched for phrases."""
    token_slot: int = -1
    """First object-token slot."""
    token_counts: tuple[int, ...] = ()
    """Tokens of every object."""
    token_positions: tuple[int, ...] = ()
    """Positions in the answer of all object tokens, in slot order."""
    answer_slot: int = -1
    """First answer-token slot."""
    answer_ids: tuple[int, ...] = ()
    answer_word: tuple[int, ...] = ()
    """Running number of the whitespace-separated word that an answer token belongs to."""
    answer_object: tuple[int, ...] = ()
    """Object that an answer token speaks of, -1 for none."""
    image: int = -1
    """Row of the image cache, -1 for none."""
    box: BoxTuple = (0, 0, 0, 0, 0)
    """(top, left, height, width, size): where the image lies in the LMM's square input, in pixels of that square."""
    error: str | None = None

    def __post_init__(self) -> None:
        answer = len(self.answer_ids)
        if (self.unit < 0) != (self.error is not None):
            problem = "it has a unit or an error, and not both"
        elif len(self.token_counts) != self.objects or sum(self.token_counts) != len(self.token_positions):
            problem = "token_counts must have one number per object and add up to the token_positions"
        elif len(self.answer_word) != answer or len(self.answer_object) != answer:
            problem = "answer_ids, answer_word and answer_object must have the same length"
        elif any(not 0 <= position < answer for position in self.token_positions):
            problem = "token_positions must lie in the answer"
        elif any(not -1 <= index < self.objects for index in self.answer_object):
            problem = "answer_object must be an object of the sample or -1"
        else:
            return
        raise ValueError(f"row of sample {self.sample}: {problem}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One image of the image cache; row i is image i."""

    image: str
    """sha256 (hex) of the image file's bytes."""
    path: str
    height: int
    width: int
    unit: int
    slot: int
    box: BoxTuple
    """As in PlanRow, in SAM's square input."""


R = TypeVar("R", PlanRow, ImageRow)


def rows_table(rows: Sequence[PlanRow] | Sequence[ImageRow], schema: pa.Schema) -> pa.Table:
    """The rows as a table with the columns of ROW_SCHEMA or IMAGE_SCHEMA."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema)


def columns_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """The table of such columns (arrays, lists of text, `list_column`s), each of the type that the schema has."""
    return pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def list_column(lengths: np.ndarray, values: Any) -> pa.ListArray:
    """A column of lists of int32. lengths: [rows]; values: of all lists, one after the other, a buffer of int32."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.asarray(values, np.int32)))


def rows_bytes(table: pa.Table) -> bytes:
    """The content of rows.parquet; the same table gives the same bytes (of one pyarrow version)."""
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=GROUP)
    return sink.getvalue()


class Rows(LazyTable[R]):
    """rows.parquet: rows as dataclasses when they are asked for, columns of numbers as compact arrays.

    Raises CacheError where the file is missing, damaged, or has other columns.
    """

    what, cure, error = "rows.parquet", "restore it, or delete the cache and extract again", CacheError
    schema: ClassVar[pa.Schema]
    row: ClassVar[Callable[..., Any]]

    def __init__(self, source: Source, memory_bytes: int = MEMORY) -> None:
        super().__init__(source, memory_bytes)
        found = self._file.schema_arrow
        if found.names != self.schema.names or found.types != self.schema.types:
            raise CacheError(f"{self.name} has the columns {found.names}, expected {self.schema.names}: {self.cure}")
        self._numbers: dict[str, np.ndarray] = {}

    def number(self, name: str, row: int) -> int:
        return int(self.numbers(name)[row])

    def numbers(self, name: str) -> np.ndarray:
        """A whole column: integers [rows] in the smallest dtype that holds them all. Kept from its first use on."""
        if name not in self._numbers:
            values = self.column(name).to_numpy()
            low, high = values.min(initial=0), values.max(initial=0)
            fitting = (kind for kind in _INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
            self._numbers[name] = values.astype(next(fitting))
        return self._numbers[name]

    def _decode(self, record: dict[str, Any]) -> R:
        lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
        return type(self).row(**(record | lists))


class PlanRows(Rows[PlanRow]):
    """Of a priors cache: row i is sample i."""

    schema, row = ROW_SCHEMA, PlanRow

    def planned_failures(self) -> list[dict[str, object]]:
        """[{"sample": row, "reason": text}] of the samples that failed at planning: for `Store.finish`."""
        return [{"sample": row, "reason": self[row].error} for row in np.flatnonzero(self.numbers("unit") < 0).tolist()]


class ImageRows(Rows[ImageRow]):
    """Of an image cache: row i is image i."""

    schema, row = IMAGE_SCHEMA, ImageRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What `pack` found. Arrays are int64 [samples]; -1 where the sample has an error."""

    units: int
    objects_per_unit: int
    tokens_per_unit: int
    answers_per_unit: int
    unit: np.ndarray
    slot: np.ndarray
    token_slot: np.ndarray
    answer_slot: np.ndarray
    errors: tuple[str | None, ...]
    padding: tuple[int, int, int]
    """Slots of each kind, over the whole cache, that no sample uses."""


def pack(
    counts: Sequence[tuple[int, int, int]] | np.ndarray,
    *,
    objects_per_unit: int,
    token_chunk: int = 1,
    answer_chunk: int = 1,
    errors: Sequence[str | None] | None = None,
) -> Packing:
    """Lay samples into units, in order: into the current unit if the objects still fit, else into a new one.

    counts: (objects, object tokens, answer tokens) per sample, [samples, 3]; a sample without objects takes one
    (padding) slot. The token capacities are what the fullest unit needs, rounded up to the chunk.
    errors: samples that failed before (a reason, else None) get no slots, and neither do those that fit into no unit.
    """
    if min(objects_per_unit, token_chunk, answer_chunk) < 1:
        raise ValueError("objects_per_unit, token_chunk and answer_chunk must be at least 1")
    table = np.asarray(counts, np.int64).reshape(-1, 3)
    found = list(repeat(None, len(table)) if errors is None else errors)
    for index in np.flatnonzero(table[:, 0] > objects_per_unit).tolist():
        found[index] = found[index] or (
            f"{table[index, 0]} objects do not fit into a unit of {objects_per_unit}; plan with a larger unit"
        )
    placed = np.array([error is None for error in found], bool)
    taken = table[placed]
    taken[:, 0] = taken[:, 0].clip(1)
    unit = _units(taken[:, 0], objects_per_unit)
    units = int(unit[-1]) + 1 if len(unit) else 0
    first = np.searchsorted(unit, np.arange(units))  # sample of every unit
    fullest = np.add.reduceat(taken, first, axis=0).max(axis=0) if units else np.zeros(3, np.int64)
    capacity = [objects_per_unit, _round_up(int(fullest[1]), token_chunk), _round_up(int(fullest[2]), answer_chunk)]
    before = taken.cumsum(axis=0) - taken
    slots = np.full((len(table), 4), -1, np.int64)
    slots[placed, 0] = unit
    slots[placed, 1:] = unit[:, None] * capacity + before - before[first][unit]
    filled = table[placed].sum(axis=0)
    padding = [units * size - int(full) for size, full in zip(capacity, filled, strict=True)]
    return Packing(
        units=units, objects_per_unit=capacity[0], tokens_per_unit=capacity[1], answers_per_unit=capacity[2],
        unit=slots[:, 0], slot=slots[:, 1], token_slot=slots[:, 2], answer_slot=slots[:, 3],
        errors=tuple(found), padding=(padding[0], padding[1], padding[2]),
    )  # fmt: skip


def _units(taken: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [samples]: the unit of each sample that takes so many object slots, none more than `capacity`."""
    units = np.zeros(len(taken), np.int64)
    unit = used = 0
    for index, count in enumerate(taken.tolist()):
        if used + count > capacity:
            unit, used = unit + 1, 0
        used += count
        units[index] = unit
    return units


def _round_up(value: int, chunk: int) -> int:
    return max(1, -(-value // chunk)) * chunk


def priors_arrays(
    packing: Packing, *, channels: int, grid: tuple[int, int], layers: int, width: int,
    token_chunk: int = 1, answer_chunk: int = 1,
) -> list[ArraySpec]:  # fmt: skip
    """The six arrays of a priors cache, an object a chunk of attention; token chunks as given to `pack`."""
    objects, tokens, answers = packing.objects_per_unit, packing.tokens_per_unit, packing.answers_per_unit
    layout: list[tuple[str, tuple[int, ...], str, int, int]] = [
        ("attention", (channels, *grid), "float16", objects, 1),
        ("attention_mass", (channels,), "float32", objects, 1),
        ("hidden", (layers, width), "float16", tokens, token_chunk),
        ("hidden_scale", (layers,), "float32", tokens, token_chunk),
        ("answer_hidden", (width,), "float16", answers, answer_chunk),
        ("answer_scale", (), "float32", answers, answer_chunk),
    ]
    return [_spec(*values) for values in layout]


def image_arrays(*, channels: int, side: int, images_per_unit: int) -> list[ArraySpec]:
    """The one array of an image cache: the encoder's embedding, a chunk per image."""
    return [_spec("embedding", (channels, side, side), "float16", images_per_unit, 1)]


def _spec(name: str, shape: tuple[int, ...], dtype: str, slots: int, chunk: int) -> ArraySpec:
    return ArraySpec(name=name, item_shape=shape, dtype=dtype, slots_per_unit=slots, slots_per_chunk=chunk)
