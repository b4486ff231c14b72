"""Bootstrap intervals over images, for every metric that is a ratio of two sums: cIoU, mIoU, average recall, F1.

Images are drawn, not objects: objects of one image share their priors and are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

DRAWS: Final = 1000
LEVEL: Final = 0.95
_BLOCK: Final = 2_000_000  # drawn images held at a time, whatever the number of images


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value in [0, 1] and its 95 % percentile interval; no interval (None) where there are fewer than two images."""

    value: float
    low: float | None
    high: float | None


def estimate(
    images: np.ndarray, numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Estimate | None:
    """sum(numerator) / sum(denominator) with its interval; None where the denominator is 0 (nothing to measure).

    images: [n], which image each row belongs to. numerator, denominator: numbers [n], denominators not negative.
    Deterministic for a seed; the order of the rows matters to rounding at most. `draws=0` skips the interval.
    """
    if denominator.sum() == 0:
        return None
    names, position = np.unique(images, return_inverse=True)
    sums = np.stack([np.bincount(position, weights=column) for column in (numerator, denominator)])
    value = float(numerator.sum() / denominator.sum())
    if len(names) < 2 or draws == 0:
        return Estimate(value=value, low=None, high=None)
    ratios = _resampled_ratios(sums, seed, draws)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def _resampled_ratios(sums: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """float64 [<= draws]: the ratio in each draw of as many images as there are; draws with nothing in them drop out.

    sums: float64 [2, images], numerator and denominator per image.
    """
    count = sums.shape[1]
    block = max(1, _BLOCK // count)
    totals = [
        _times_drawn(count, seed, start, min(block, draws - start)).astype(np.float64) @ sums.T
        for start in range(0, draws, block)
    ]
    numerator, denominator = np.concatenate(totals).T
    full = denominator > 0
    return numerator[full] / denominator[full]


@lru_cache(maxsize=16)  # the metrics of one group of objects are of the same images
def _times_drawn(count: int, seed: int, start: int, draws: int) -> np.ndarray:
    """uint8 [draws, count]: how often each image is among the `count` that are drawn."""
    times = np.empty((draws, count), np.uint8)
    for row, number in enumerate(range(start, start + draws)):  # a draw is the same in blocks of any size
        drawn = np.random.default_rng([seed, number]).integers(0, count, count)
        times[row] = np.bincount(drawn, minlength=count)
    return times
