"""rows.parquet, the plan and the only index of a cache: which sample lies in which unit, slots and batch.

Three kinds of slots, each with its own capacity per unit: object slots, object-token slots, answer-token slots.
A sample's objects, object tokens and answer tokens are consecutive slots of one unit; what is left over is padding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.layout import ArraySpec
from manifests.errors import CacheError

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


def rows_table(rows: Sequence[PlanRow] | Sequence[ImageRow], schema: pa.Schema) -> pa.Table:
    """The rows as a table with the columns of ROW_SCHEMA or IMAGE_SCHEMA."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema)


def rows_bytes(table: pa.Table) -> bytes:
    """The content of rows.parquet; the same table gives the same bytes (of one pyarrow version)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()


class Rows:
    """rows.parquet in memory: numpy columns, lists as views: a million rows cost no Python objects."""

    def __init__(self, table: pa.Table, schema: pa.Schema) -> None:
        if table.schema.names != schema.names or table.schema.types != schema.types:
            raise CacheError(f"rows.parquet has the columns {table.schema.names}, expected {schema.names}")
        self.table = table
        self._numbers: dict[str, np.ndarray] = {}
        self._lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for field in schema:
            column = table.column(field.name).combine_chunks()
            if pa.types.is_list(field.type):
                ends = np.cumsum(np.asarray(column.value_lengths()), dtype=np.int64)
                self._lists[field.name] = np.concatenate([[0], ends]), np.asarray(column.flatten())
            elif not pa.types.is_string(field.type):
                self._numbers[field.name] = np.asarray(column)

    @classmethod
    def read(cls, path: Path | pa.NativeFile, schema: pa.Schema) -> Rows:
        return cls(pq.read_table(path), schema)

    def __len__(self) -> int:
        return len(self.table)

    def number(self, name: str, row: int) -> int:
        return int(self._numbers[name][row])

    def numbers(self, name: str) -> np.ndarray:
        """A whole column: int32 or int64 [rows]."""
        return self._numbers[name]

    def values(self, name: str, row: int) -> np.ndarray:
        """The list in one row: int32 [n], a view."""
        offsets, flat = self._lists[name]
        return flat[offsets[row] : offsets[row + 1]]

    def box(self, row: int) -> BoxTuple:
        top, left, height, width, size = self.values("box", row).tolist()
        return top, left, height, width, size

    def planned_failures(self) -> list[dict[str, object]]:
        """[{"sample": row, "reason": text}] of the samples that failed at planning: for `Store.finish`."""
        errors = self.table.column("error").to_pylist()
        return [{"sample": row, "reason": error} for row, error in enumerate(errors) if error is not None]

    def row(self, index: int) -> PlanRow:
        """One row of the priors' plan as the dataclass, lists as tuples of int."""
        record: dict[str, Any] = self.table.slice(index, 1).to_pylist()[0]
        lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
        return PlanRow(**(record | lists))


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
    counts: Sequence[tuple[int, int, int]],
    *,
    objects_per_unit: int,
    token_chunk: int = 1,
    answer_chunk: int = 1,
    errors: Sequence[str | None] | None = None,
) -> Packing:
    """Lay samples into units, in order: into the current unit if the objects still fit, else into a new one.

    counts: (objects, object tokens, answer tokens) per sample; a sample without objects takes one (padding) slot.
    The token capacities are what the fullest unit needs, rounded up to the chunk.
    errors: samples that failed before (a reason, else None) get no slots, and neither do those that fit into no unit.
    """
    if min(objects_per_unit, token_chunk, answer_chunk) < 1:
        raise ValueError("objects_per_unit, token_chunk and answer_chunk must be at least 1")
    found: list[str | None] = []
    places = np.full((len(counts), 4), -1, np.int64)  # unit, then the offset inside it, per kind of slot
    used: list[list[int]] = []  # slots taken so far, per unit and kind
    for index, ((objects, tokens, answer), error) in enumerate(
        zip(counts, errors or repeat(None, len(counts)), strict=True)
    ):
        if error is None and objects > objects_per_unit:
            error = f"{objects} objects do not fit into a unit of {objects_per_unit}; plan with a larger unit"
        found.append(error)
        if error is not None:
            continue
        taken = max(objects, 1)
        if not used or used[-1][0] + taken > objects_per_unit:
            used.append([0, 0, 0])
        places[index] = len(used) - 1, *used[-1]
        used[-1] = [used[-1][0] + taken, used[-1][1] + tokens, used[-1][2] + answer]
    capacity = [objects_per_unit, *(_round_up(max((unit[kind] for unit in used), default=0), chunk)
                                    for kind, chunk in ((1, token_chunk), (2, answer_chunk)))]  # fmt: skip
    unit, placed = places[:, 0], places[:, 0] >= 0
    slots = np.where(placed[:, None], unit[:, None] * np.array(capacity) + places[:, 1:], -1)
    filled = np.array(counts, np.int64).reshape(-1, 3)[placed].sum(axis=0)
    padding = [len(used) * size - int(full) for size, full in zip(capacity, filled, strict=True)]
    return Packing(
        units=len(used), objects_per_unit=capacity[0], tokens_per_unit=capacity[1], answers_per_unit=capacity[2],
        unit=unit, slot=slots[:, 0], token_slot=slots[:, 1], answer_slot=slots[:, 2],
        errors=tuple(found), padding=(padding[0], padding[1], padding[2]),
    )  # fmt: skip


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
