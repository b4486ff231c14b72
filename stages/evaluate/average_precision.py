"""COCO's average precision at one IoU threshold, from the IoU of every prediction with every truth.

As pycocotools' COCOeval computes it for one category without crowds: the best 100 predictions of an image take truths
in the order of their scores, each the free one with the largest IoU >= threshold (the last of equal ones); precision is
made to fall with recall and read at 101 recalls. Predictions of equal score keep the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

MOST: Final = 100
RECALLS: Final = np.linspace(0.0, 1.0, 101)


def average_precision(images: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float = 0.5) -> float | None:
    """images: of each the scores, float [p], and IoU, float [p, t]. None where there is no truth at all."""
    truths = sum(ious.shape[1] for _, ious in images)
    if not truths:
        return None
    orders = [np.argsort(-scores, kind="stable")[:MOST] for scores, _ in images]
    scores = np.concatenate([scores[order] for (scores, _), order in zip(images, orders, strict=True)])
    hits = np.concatenate([_hits(ious[order], threshold) for (_, ious), order in zip(images, orders, strict=True)])
    hits = hits[np.argsort(-scores, kind="stable")]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    falling = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 for recalls that are never reached
    return float(falling[np.searchsorted(found / truths, RECALLS, side="left")].mean())


def _hits(ious: np.ndarray, threshold: float) -> np.ndarray:
    """bool [p]: which predictions find a free truth. ious: float [p, t], rows in the order of their turn."""
    free = np.ones(ious.shape[1], bool)
    hits = np.zeros(len(ious), bool)
    for k, row in enumerate(ious):
        open_to = np.where(free, row, -1.0)
        if open_to.size and open_to.max() >= min(threshold, 1 - 1e-10):
            hits[k] = True
            free[open_to.size - 1 - int(np.argmax(open_to[::-1]))] = False
    return hits
