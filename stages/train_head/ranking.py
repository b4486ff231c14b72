"""Which attention maps say most about where objects are? Each map alone, against the masks of training samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cache.priors import Priors
from manifests.errors import PipelineError
from manifests.masks import decode
from stages.train_head.overlaps import THRESHOLDS, at_centres, attention_of, on_image, overlaps, spread

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
    try:
        chosen = spread(priors, split, most)
    except PipelineError as error:
        raise PipelineError(f"{error} to rank maps by; name the maps: --channels 0,5,17") from None
    both, either = np.zeros((2, priors.channels, len(THRESHOLDS)))
    objects = 0
    for index in chosen:
        maps, part = attention_of(priors, index)
        truth = at_centres([decode(each.mask) for each in priors.samples[index].objects], part)
        for values, mask in zip(on_image(maps, part), truth, strict=True):
            inside, covered = overlaps(values, mask[None])
            both, either = both + inside[0], either + covered[0]
        objects += len(maps)
    return Ranking(scores=(both / either.clip(1)).max(axis=1), samples=len(chosen), objects=objects)
