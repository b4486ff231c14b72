"""Panoptic narrative grounding (PNG): average recall of all, thing, stuff, singular and plural phrases.

Average recall = integral over t in [0, 1] of recall(t), the share of phrases with IoU >= t. For one phrase the integral
of [IoU >= t] is the length of [0, IoU], its IoU; so the integral of the share is exactly the mean IoU. The usual
implementation adds up recall at thresholds 1e-5 apart; it differs from the exact integral by 1e-5 at most
(`tests/stages/evaluate/test_png.py` adds it up).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from manifests.schema import CAPTIONS
from stages.evaluate.bootstrap import DRAWS, estimate
from stages.evaluate.measures import Measure
from stages.evaluate.results import Columns, ObjectResult, Which, breakdown, parts

PROTOCOL: Final = "png"
GROUPS: Final = ("all", "thing", "stuff", "singular", "plural")
CURVE: Final = tuple(k / 50 for k in range(51))  # thresholds at which the report draws recall


def recall_at(ious: np.ndarray, thresholds: Sequence[float] = CURVE) -> tuple[float, ...]:
    """The share of `ious` (float [n], n >= 1) that are >= each threshold."""
    below = np.searchsorted(np.sort(ious), thresholds, side="left")
    return tuple((1 - below / len(ious)).tolist())


def _kinds(columns: Columns) -> dict[str, np.ndarray]:
    """bool [n] of each of `GROUPS`. A plural phrase counts as a thing, whatever its segments are."""
    thing = columns.is_thing | columns.plural
    return dict(zip(GROUPS, (np.ones_like(thing), thing, ~thing, ~columns.plural, columns.plural), strict=True))


def summarise_png(
    results: Sequence[ObjectResult], which: Which = "refined", *, seed: int = 0, draws: int = DRAWS
) -> list[Measure]:
    """average_recall of the phrases of captions: of `GROUPS`, by size of the object, by words. Failed ones: IoU 0."""
    return [
        Measure(
            protocol=PROTOCOL,
            dataset=part.dataset,
            split=part.split,
            method=which,
            group=group,
            metric="average_recall",
            value=estimate(chosen.images, chosen.iou, np.ones_like(chosen.iou), seed=seed, draws=draws),
            images=len(np.unique(chosen.images)),
            items=len(chosen.iou),
            failed=int(chosen.failed.sum()),
        )
        for part in parts(results, which, CAPTIONS)
        for group, members in [*_kinds(part.columns).items(), *breakdown(part.columns)]
        if members.any() or group in GROUPS
        for chosen in (part.columns.where(members),)
    ]


def recall_curves(results: Sequence[ObjectResult], which: Which) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """ "dataset split" -> group (all, thing, stuff) -> points (threshold, recall) to draw."""
    return {
        f"{part.dataset} {part.split}": {
            group: list(zip(CURVE, recall_at(part.columns.iou[members]), strict=True))
            for group, members in _kinds(part.columns).items()
            if group in ("all", "thing", "stuff") and members.any()
        }
        for part in parts(results, which, CAPTIONS)
    }
