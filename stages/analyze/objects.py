"""The objects that maps are held against: which groups each belongs to, and whose mask is its control.

Every object lies in one bin (kind, size, position), so that sums over bins are sums over objects, whatever is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cache.plan import PlanRow
from cache.priors import Priors
from manifests.masks import Rle, area

KINDS: Final = ("thing", "stuff")
SIZES: Final = ("small", "medium", "large")
POSITIONS: Final = ("earliest", "early", "late", "latest")
BINS: Final = (len(KINDS), len(SIZES), len(POSITIONS))
SIZE_BORDERS: Final = (32**2 / (640 * 480), 96**2 / (640 * 480))
"""Shares of the image: COCO's 32² and 96² pixels in an image of COCO's usual size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One object of a sample."""

    sample: int
    """Index in the manifest."""
    number: int
    """Which object of its sample."""
    image_id: str
    mask: Rle
    share: float
    """Pixels of its mask / pixels of its image."""
    position: int
    """Of its first token in the answer, counted from 0."""
    bin: tuple[int, int, int] = (0, 0, 0)
    """Kind, size, position: numbers in KINDS, SIZES, POSITIONS."""
    other: Rle | None = None
    """The control: the mask of an object of another image; None where there is no other image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """All objects of the chosen samples, in order, and where the quarters of word positions end."""

    objects: list[Subject]
    quartiles: tuple[float, float, float]
    """Token positions: a quarter holds the objects whose position is at most its border."""

    @property
    def controlled(self) -> bool:
        """Have all objects a control? All or none have: there is another image or there is not."""
        return all(each.other is not None for each in self.objects)

    def of_sample(self) -> dict[int, list[Subject]]:
        """The objects by their sample, in order."""
        found: dict[int, list[Subject]] = {}
        for each in self.objects:
            found.setdefault(each.sample, []).append(each)
        return found


def subjects_of(priors: Priors, samples: Sequence[int], seed: int) -> Subjects:
    """The objects of these samples in their bins, each with its control. The same seed gives the same controls."""
    found, kinds = [], []
    for index in samples:
        sample, firsts = priors.samples[index], _first_positions(priors.rows[index])
        for number, (item, position) in enumerate(zip(sample.objects, firsts, strict=True)):
            share = area(item.mask) / (sample.height * sample.width)
            found.append(
                Subject(
                    sample=index,
                    number=number,
                    image_id=sample.image_id,
                    mask=item.mask,
                    share=share,
                    position=position,
                )
            )
            kinds.append(0 if item.is_thing else 1)
    positions = np.array([each.position for each in found])
    quartiles = np.quantile(positions, (0.25, 0.5, 0.75))
    sizes = np.searchsorted(SIZE_BORDERS, [each.share for each in found], side="right")
    quarters = np.searchsorted(quartiles, positions, side="left")
    bins = list(zip(kinds, sizes.tolist(), quarters.tolist(), strict=True))
    others = controls([each.image_id for each in found], [(kind, size) for kind, size, _ in bins], seed)
    objects = [
        replace(each, bin=place, other=None if other is None else found[other].mask)
        for each, place, other in zip(found, bins, others, strict=True)
    ]
    first, second, third = quartiles.tolist()
    return Subjects(objects=objects, quartiles=(first, second, third))


def controls(images: Sequence[str], groups: Sequence[tuple[int, int]], seed: int) -> list[int | None]:
    """For every object another one, of another image: of its own group (kind and size) where that has one.

    A mask of about the same size keeps what is by chance comparable: large masks are hit more easily than small ones.
    None where all objects are of one image.
    """
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    members: dict[tuple[int, int], list[int]] = {}
    for number in order:
        members.setdefault(groups[number], []).append(number)
    found: list[int | None] = [None] * len(images)
    for among in (order, *members.values()):  # what the own group has replaces what all had
        for place, number in enumerate(among):
            following = (among[(place + step) % len(among)] for step in range(1, len(among)))
            other = next((each for each in following if images[each] != images[number]), None)
            found[number] = found[number] if other is None else other
    return found


def _first_positions(row: PlanRow) -> list[int]:
    """The position in the answer of every object's first token."""
    starts = np.cumsum([0, *row.token_counts[:-1]])
    return [min(row.token_positions[s : s + n]) for s, n in zip(starts.tolist(), row.token_counts, strict=True)]
