"""The few numbers that evaluation keeps of each object, so that memory does not grow with masks.

write_objects(path, results)        # as they come, a row group in memory at a time
table = ObjectTable(path)           # a sequence of `ObjectResult`; a row is decoded when it is asked for
for part in parts(table, "refined", ("referring",)): part.dataset, part.columns.iou
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, get_args

import numpy as np
import pyarrow as pa

from manifests.schema import Object, Sample, Task
from manifests.table import LazyTable, write_records
from stages.evaluate.metrics import iou

Which = Literal["refined", "coarse"]
TABLE: Final = "objects.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectResult:
    """One object: its truth's size and how far the two predicted masks agree with it, in pixels of the original image.

    A failed object (its sample was never extracted) has no masks: build it with `missed`, which counts it as an empty
    prediction. A head without a refiner has the same numbers twice. Pixels that the truth says to ignore are in none of
    the counts.
    """

    sample: int
    """Row of the sample in the manifest."""
    number: int
    """Which object of its sample."""
    sample_id: str
    dataset: str
    split: str
    task: Task
    group: str
    """The sample's own: "short", "long", …, or ""."""
    image_id: str
    phrase: str
    is_thing: bool
    plural: bool
    pixels: int
    """Of the image."""
    area: int
    """Pixels of the true mask."""
    intersection: int
    union: int
    coarse_intersection: int
    coarse_union: int
    failed: bool = False

    def __post_init__(self) -> None:
        for name, both, either in (
            ("refined", self.intersection, self.union),
            ("coarse", self.coarse_intersection, self.coarse_union),
        ):
            if not 0 <= both <= self.area <= either:
                raise ValueError(
                    f"{self.sample_id}: the {name} mask needs 0 <= intersection <= area <= union, "
                    f"got {both}, {self.area}, {either}"
                )

    @classmethod
    def missed(cls, *, area: int, **described: Any) -> ObjectResult:
        """An object of a failed sample: nothing predicted, its whole area is union. described: as of `describe`."""
        empty: dict[str, Any] = {"intersection": 0, "union": area, "coarse_intersection": 0, "coarse_union": area}
        return cls(**described, area=area, **empty, failed=True)


def describe(index: int, sample: Sample, number: int) -> dict[str, Any]:
    """What a result says of its object, before anything is measured. index: of the sample in the manifest."""
    item: Object = sample.objects[number]
    return {
        "sample": index,
        "number": number,
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "split": sample.split,
        "task": sample.task,
        "group": sample.group,
        "image_id": sample.image_id,
        "phrase": item.phrase,
        "is_thing": item.is_thing,
        "plural": item.plural,
        "pixels": sample.height * sample.width,
    }


_TYPES: Final = {"str": pa.string(), "Task": pa.string(), "bool": pa.bool_(), "int": pa.int64()}
SCHEMA: Final = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(ObjectResult)])


class ObjectTable(LazyTable[ObjectResult]):
    """The results in a file, in order."""

    what, cure = "the table of objects", "evaluate again"

    def _decode(self, record: dict[str, Any]) -> ObjectResult:
        return ObjectResult(**record)


def write_objects(path: Path, results: Iterable[ObjectResult]) -> ObjectTable:
    """Write the results as they come, under a temporary name until all of them are there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write_records(file, SCHEMA, map(asdict, results), {})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return ObjectTable(path)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Columns:
    """Object results as columns of length n, one row per object."""

    images: np.ndarray
    """int64 [n], a number for each image"""
    intersection: np.ndarray
    """int64 [n]"""
    union: np.ndarray
    """int64 [n]"""
    iou: np.ndarray
    """float64 [n]; 0 where failed, whatever the truth"""
    failed: np.ndarray
    """bool [n]"""
    area: np.ndarray
    """int64 [n], pixels of the true masks"""
    pixels: np.ndarray
    """int64 [n], pixels of the images"""
    words: np.ndarray
    """int64 [n], words of the phrases"""
    is_thing: np.ndarray
    """bool [n]"""
    plural: np.ndarray
    """bool [n]"""
    groups: np.ndarray
    """str [n], the samples' own groups"""

    def where(self, chosen: np.ndarray) -> Columns:
        """The rows where bool [n] `chosen` is true, or those that int64 [m] names."""
        return Columns(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """The objects of one dataset's split."""

    dataset: str
    split: str
    columns: Columns


_WANTED: Final = (
    *("dataset", "split", "task", "group", "image_id", "phrase", "is_thing", "plural", "pixels", "area", "failed"),
    *("intersection", "union", "coarse_intersection", "coarse_union"),
)


def parts(results: Sequence[ObjectResult], which: Which, tasks: Collection[str] = get_args(Task)) -> list[Part]:
    """The results of these tasks by (dataset, split), in the order of their first object.

    which: the refined or the coarse masks; ValueError for another name.
    """
    found = _table(results)
    task_codes, known = _coded(found["task"])
    chosen = np.isin(task_codes, [k for k, task in enumerate(known) if task in tasks])
    if not chosen.any():
        return []
    every = _columns(found, which).where(chosen)
    (datasets, dataset_names), (splits, split_names) = (
        (codes[chosen], names) for codes, names in (_coded(found[name]) for name in ("dataset", "split"))
    )
    keys = datasets * len(split_names) + splits
    different, first = np.unique(keys, return_index=True)
    return [
        Part(
            dataset=dataset_names[key // len(split_names)],
            split=split_names[key % len(split_names)],
            columns=every.where(keys == key),
        )
        for key in different[np.argsort(first)].tolist()
    ]


def columns(results: Sequence[ObjectResult], which: Which) -> Columns:
    """All results, in order. Of a table in a file the columns are read that are needed, no row is decoded."""
    return _columns(_table(results), which)


def _table(results: Sequence[ObjectResult]) -> pa.Table:
    if isinstance(results, ObjectTable):
        return results.table(list(_WANTED))
    rows = {name: [getattr(r, name) for r in results] for name in _WANTED}
    return pa.table(rows, schema=pa.schema([SCHEMA.field(name) for name in _WANTED]))


def _columns(found: pa.Table, which: Which) -> Columns:
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, got {which!r}")
    numbers = {name: found[name].to_numpy() for name in ("area", "pixels", "failed", "is_thing", "plural")}
    prefix = "coarse_" if which == "coarse" else ""
    both, either = found[f"{prefix}intersection"].to_numpy(), found[f"{prefix}union"].to_numpy()
    codes, names = _coded(found["group"])
    return Columns(
        **numbers,
        images=_coded(found["image_id"])[0],
        intersection=both,
        union=either,
        iou=np.where(numbers["failed"], 0.0, iou(both, either)),
        words=_words(found["phrase"]),
        groups=np.array([*names, ""], np.str_)[codes],
    )


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """int64 [n] of the rows' texts, and what each number stands for."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _words(column: pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: words of every phrase; a piece of the column at a time, for the texts are the largest of a row."""
    counts = [len(text.split()) for chunk in column.chunks for text in chunk.to_pylist()]
    return np.array(counts, np.int64)


class OfSplit(Protocol):
    """A result that belongs to a dataset and a split."""

    @property
    def dataset(self) -> str: ...

    @property
    def split(self) -> str: ...


R = TypeVar("R", bound=OfSplit)


def by_split(results: Sequence[R]) -> dict[tuple[str, str], list[R]]:
    """Results grouped by (dataset, split), groups in the order of their first result."""
    groups: dict[tuple[str, str], list[R]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.split), []).append(result)
    return groups


SIZES: Final = {"small": (0.0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's borders in pixels, scaled to the image: of an object's share of an image of 640 x 480."""
LENGTHS: Final = {"1-2 words": (0, 2), "3-5 words": (3, 5), "6+ words": (6, np.inf)}


def breakdown(of: Columns) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool [n]) of groups by size of the object and by length of its phrase."""
    size = of.area / np.maximum(of.pixels, 1) * (640 * 480)
    for name, (low, high) in SIZES.items():
        yield name, (size >= low) & (size < high)
    for name, (least, most) in LENGTHS.items():
        yield name, (of.words >= least) & (of.words <= most)
