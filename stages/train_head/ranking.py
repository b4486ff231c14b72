"""Which attention maps say most about where objects are? Each map alone, against the masks of training samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cache.priors import Priors
from manifests.errors import PipelineError
from manifests.masks import decode
from stages.train_head.data import as_box, splits_of
from stages.train_head.targets import frame_targets

THRESHOLDS: Final = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # maps have mean 1
SAMPLES: Final = 200
METHOD: Final = (
    "cumulative IoU of the map, thresholded, with the masks, on the map's own grid; of each map its best threshold of "
    f"{', '.join(map(str, THRESHOLDS))} times its mean"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """What was found on `samples` samples with `objects` objects."""

    scores: np.ndarray
    """float64 [C]: of each map its cIoU, in [0, 1]."""
    samples: int
    objects: int

    def best(self, count: int) -> list[int]:
        """The best maps in the order of their numbers; of two that are equally good the one with the lower number."""
        return sorted(np.argsort(-self.scores, kind="stable")[:count].tolist())


def rank_maps(priors: Priors, split: str = "train", most: int = SAMPLES) -> Ranking:
    """Score every map on at most so many samples of a split, evenly spread over those that did not fail.

    The same cache gives the same scores. PipelineError where the split has no samples.
    """
    indices = [index for index in priors.samples.where(split=[split]) if index not in priors.failures]
    if not indices:
        raise PipelineError(
            f"{priors.store.name} has no sample of the split {split} to rank maps by (it has {splits_of(priors)}); "
            "name the maps: --channels 0,5,17"
        )
    chosen = [indices[i * len(indices) // min(len(indices), most)] for i in range(min(len(indices), most))]
    sums = np.zeros((2, priors.channels, len(THRESHOLDS)))
    objects = 0
    for index in chosen:
        objects += _add(priors, index, sums)
    return Ranking(
        scores=(sums[0] / sums[1].clip(1)).max(axis=1),
        samples=len(chosen),
        objects=objects,
    )


def _add(priors: Priors, index: int, sums: np.ndarray) -> int:
    """Add a sample's intersections and unions to sums [2, C, thresholds]; -> its objects."""
    item, sample = priors.read(index), priors.samples[index]
    assert item is not None
    masks = np.stack([decode(each.mask) for each in sample.objects])
    frame = frame_targets([masks], [as_box(item.box)], priors.grid[0])
    for maps, mask, valid in zip(item.attention, frame.mask.numpy(), frame.valid.numpy(), strict=True):
        inside = valid.astype(bool)
        values, truth = maps[:, inside], mask[inside].astype(bool)
        for number, threshold in enumerate(THRESHOLDS):
            above = values > threshold
            both = above[:, truth].sum(axis=1)
            sums[0, :, number] += both
            sums[1, :, number] += above.sum(axis=1) + truth.sum() - both
    return len(masks)
