"""The few numbers that evaluation keeps of each object, so that memory does not grow with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np

from stages.evaluate.metrics import iou

Which = Literal["refined", "coarse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectResult:
    """One object: its truth's size and how far the two predicted masks agree with it, in pixels of the original image.

    A failed object (its sample was never extracted) has no masks: build it with `ObjectResult.missed`, which counts it
    as an empty prediction. A head without a refiner has the same numbers twice.
    """

    sample_id: str
    dataset: str
    split: str
    image_id: str
    phrase: str
    is_thing: bool
    plural: bool
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
    def missed(
        cls,
        *,
        sample_id: str,
        dataset: str,
        split: str,
        image_id: str,
        phrase: str,
        is_thing: bool,
        plural: bool,
        area: int,
    ) -> ObjectResult:
        """An object of a failed sample: nothing predicted, its whole area is union."""
        return cls(
            sample_id=sample_id,
            dataset=dataset,
            split=split,
            image_id=image_id,
            phrase=phrase,
            is_thing=is_thing,
            plural=plural,
            area=area,
            intersection=0,
            union=area,
            coarse_intersection=0,
            coarse_union=area,
            failed=True,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Columns:
    """Object results as columns of length n, one row per object."""

    images: np.ndarray
    """str [n]"""
    intersection: np.ndarray
    """int64 [n]"""
    union: np.ndarray
    """int64 [n]"""
    iou: np.ndarray
    """float64 [n]; 0 where failed, whatever the truth"""
    failed: np.ndarray
    """bool [n]"""


def columns(results: Sequence[ObjectResult], which: Which) -> Columns:
    """The columns of the refined or of the coarse masks; ValueError for another name."""
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, got {which!r}")
    coarse = which == "coarse"
    both = np.array([r.coarse_intersection if coarse else r.intersection for r in results], np.int64)
    either = np.array([r.coarse_union if coarse else r.union for r in results], np.int64)
    failed = np.array([r.failed for r in results], bool)
    images = np.array([r.image_id for r in results], np.str_)
    return Columns(
        images=images, intersection=both, union=either, iou=np.where(failed, 0.0, iou(both, either)), failed=failed
    )


class OfSplit(Protocol):
    """A result or a row that belongs to a dataset and a split."""

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
