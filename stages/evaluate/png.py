"""Panoptic narrative grounding (PNG): average recall of all, thing, stuff, singular and plural phrases.

Average recall = integral over t in [0, 1] of recall(t), the share of phrases with IoU >= t. For one phrase the integral
of [IoU >= t] is the length of [0, IoU], its IoU; so the integral of the share is exactly the mean IoU. The usual
implementation adds up recall at thresholds 1e-5 apart; it differs from the exact integral by 1e-5 at most
(`tests/stages/evaluate/test_png.py` adds it up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.evaluate.bootstrap import DRAWS, Estimate, estimate
from stages.evaluate.results import Columns, ObjectResult, Which, by_split, columns

PROTOCOL: Final = "png"
GROUPS: Final = ("all", "thing", "stuff", "singular", "plural")
CURVE: Final = tuple(k / 50 for k in range(51))  # thresholds at which the report draws recall


@dataclass(frozen=True, kw_only=True, slots=True)
class PngGroup:
    """The phrases of one kind."""

    objects: int
    failed: int
    average_recall: Estimate | None
    """None where there is no such phrase."""
    recall: tuple[float, ...]
    """Recall at the thresholds of `CURVE`, for the picture; empty where there is no such phrase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PngRow:
    """One dataset and split; `groups` by the names of `GROUPS`."""

    protocol: str
    dataset: str
    split: str
    which: Which
    images: int
    groups: dict[str, PngGroup]


def recall_at(ious: np.ndarray, thresholds: Sequence[float] = CURVE) -> tuple[float, ...]:
    """The share of `ious` (float [n], n >= 1) that are >= each threshold."""
    below = np.searchsorted(np.sort(ious), thresholds, side="left")
    return tuple((1 - below / len(ious)).tolist())


def summarise_png(
    results: Sequence[ObjectResult], which: Which = "refined", *, seed: int = 0, draws: int = DRAWS
) -> list[PngRow]:
    """One row per (dataset, split), in the order of their first object; give only objects of narrative samples.

    A plural phrase counts as a thing, whatever its segments are. Failed objects have IoU 0.
    """
    rows = []
    for (dataset, split), group in by_split(results).items():
        table = columns(group, which)
        plural = np.array([r.plural for r in group], bool)
        thing = np.array([r.is_thing for r in group], bool) | plural
        members = (np.ones_like(thing), thing, ~thing, ~plural, plural)
        rows.append(
            PngRow(
                protocol=PROTOCOL,
                dataset=dataset,
                split=split,
                which=which,
                images=len(np.unique(table.images)),
                groups={name: _group(table, of, seed, draws) for name, of in zip(GROUPS, members, strict=True)},
            )
        )
    return rows


def _group(table: Columns, members: np.ndarray, seed: int, draws: int) -> PngGroup:
    ious = table.iou[members]
    return PngGroup(
        objects=len(ious),
        failed=int(table.failed[members].sum()),
        average_recall=estimate(table.images[members], ious, np.ones_like(ious), seed=seed, draws=draws),
        recall=recall_at(ious) if len(ious) else (),
    )
