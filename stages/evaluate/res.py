"""Referring expression segmentation (RES): cIoU, mIoU and P@t, per dataset and split.

Protocol "flmm": the first sentence of every object, all of an image's sentences in one sequence, every object counted
once. LISA-style results score every sentence alone and are not comparable; a manifest built that way must be summarised
under another protocol name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stages.evaluate.bootstrap import DRAWS, Estimate, estimate
from stages.evaluate.results import ObjectResult, Which, by_split, columns

PROTOCOL: Final = "flmm"
THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResRow:
    """One line of the RES table; values in [0, 1]."""

    protocol: str
    dataset: str
    split: str
    which: Which
    images: int
    objects: int
    failed: int
    """Objects of samples that were never extracted: IoU 0, and their area counts in the union."""
    ciou: Estimate | None
    """Summed intersection over summed union: large objects weigh more. None where no object has a pixel."""
    miou: Estimate | None
    precision_at: dict[str, float]
    """Share of the objects with IoU >= t, by t."""


def summarise_res(
    results: Sequence[ObjectResult],
    which: Which = "refined",
    *,
    protocol: str = PROTOCOL,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[ResRow]:
    """One row per (dataset, split), in the order of their first object; give only objects of referring samples."""
    rows = []
    for (dataset, split), group in by_split(results).items():
        table = columns(group, which)
        rows.append(
            ResRow(
                protocol=protocol,
                dataset=dataset,
                split=split,
                which=which,
                images=len(np.unique(table.images)),
                objects=len(table.iou),
                failed=int(table.failed.sum()),
                ciou=estimate(table.images, table.intersection, table.union, seed=seed, draws=draws),
                miou=estimate(table.images, table.iou, np.ones_like(table.iou), seed=seed, draws=draws),
                precision_at={str(t): float(np.mean(table.iou >= t)) for t in THRESHOLDS},
            )
        )
    return rows
