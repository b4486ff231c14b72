"""Control (a) of `benchmarks.controls`: the best single attention map, thresholded, without any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from cache.priors import Priors
from manifests.masks import decode
from manifests.schema import Object
from stages.evaluate.results import ObjectResult, describe
from stages.train_head.data import as_box
from stages.train_head.heads.base import crop_resize

THRESHOLDS: Final = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # maps have mean 1
Choice = tuple[int, float]


def choose(priors: Priors) -> dict[str, Choice]:
    """Task -> (map, threshold) with the best cIoU on validation expressions, or on training narratives."""
    chosen = {}
    for task, split in (("referring", "val"), ("narrative", "train")):
        indices = priors.samples.where(split=[split], task=[task])[:120]
        sums = np.zeros((priors.channels, len(THRESHOLDS), 2))
        for maps, truth, _ in _maps(priors, indices):
            if maps is None:
                continue
            for t, threshold in enumerate(THRESHOLDS):
                mask = maps > threshold
                sums[:, t, 0] += (mask & truth).sum((-1, -2))
                sums[:, t, 1] += (mask | truth).sum((-1, -2))
        channel, t = np.unravel_index((sums[..., 0] / sums[..., 1].clip(1)).argmax(), sums.shape[:2])
        chosen[task] = (int(channel), THRESHOLDS[t])
    return chosen


def apply(priors: Priors, indices: Sequence[int], chosen: dict[str, Choice]) -> list[ObjectResult]:
    """The masks of the map that was chosen for a sample's task, on these samples: one result per object."""
    results = []
    for index in indices:
        sample = priors.samples[index]
        channel, threshold = chosen[sample.task]
        for number, (maps, truth, _) in enumerate(_maps(priors, [index])):
            # a failed sample has no maps and is a miss, as it is for the heads
            mask = maps[channel] > threshold if maps is not None else np.zeros_like(truth)
            both, either = int((mask & truth).sum()), int((mask | truth).sum())
            results.append(
                ObjectResult(
                    **describe(index, sample, number),
                    area=int(truth.sum()),
                    intersection=both,
                    union=either,
                    coarse_intersection=both,
                    coarse_union=either,
                    failed=maps is None,
                )
            )
    return results


def _maps(priors: Priors, indices: Sequence[int]) -> Iterator[tuple[np.ndarray | None, np.ndarray, Object]]:
    """(maps [C, height, width] at the image's size, mean 1 over the LMM's square, or None; its mask; the object)."""
    for index in indices:
        item, sample = priors.read(index), priors.samples[index]
        for k, described in enumerate(sample.objects):
            maps = None
            if item is not None:
                square = torch.from_numpy(item.attention[k].astype(np.float32))
                maps = crop_resize(square, as_box(item.box), (sample.height, sample.width)).numpy()
            yield maps, decode(described.mask), described
