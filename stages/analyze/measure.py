"""What every map of a cache is worth: sums over objects, in bins of kind, size and word position.

    subjects = subjects_of(priors, spread(priors, "train", 300), seed=0)
    sums = measure(priors, subjects)

Letters: C maps, P cells that show the image, R = 2 masks (the object's, the control's), T thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.priors import Priors
from manifests.masks import decode
from stages.analyze.objects import BINS, Subject, Subjects
from stages.extract.images import Box
from stages.train_head.data import prefetch
from stages.train_head.overlaps import THRESHOLDS, at_centres, attention_of, on_image, overlaps

OBJECT, CONTROL = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over the objects of every bin; the first axes of all are BINS. float64 but for `objects`."""

    objects: np.ndarray
    """int64 [*BINS]."""
    both: np.ndarray
    """[*BINS, R, C, T]: cells in the thresholded map and in the mask."""
    either: np.ndarray
    """[*BINS, R, C, T]."""
    iou: np.ndarray
    """[*BINS, R, C, T]: of each object's both / either."""
    hits: np.ndarray
    """[*BINS, R, C]: objects that the map's maximum lies on."""
    mass: np.ndarray
    """[*BINS, C]: attention on the image, of 1 in all."""
    entropy: np.ndarray
    """[*BINS, C]: 0 all on one cell, 1 the same on all."""

    @classmethod
    def zeros(cls, channels: int) -> Sums:
        """Sums over nothing."""
        masks, thresholds = (*BINS, 2, channels), (*BINS, 2, channels, len(THRESHOLDS))
        return cls(
            objects=np.zeros(BINS, np.int64), both=np.zeros(thresholds), either=np.zeros(thresholds),
            iou=np.zeros(thresholds), hits=np.zeros(masks), mass=np.zeros((*BINS, channels)),
            entropy=np.zeros((*BINS, channels)),
        )  # fmt: skip


def measure(priors: Priors, subjects: Subjects, on_sample: Callable[[int], None] = lambda _: None) -> Sums:
    """The sums over these objects; a sample is read while the one before it is counted.

    on_sample is told how many objects a sample had.
    """
    sums = Sums.zeros(priors.channels)
    samples = subjects.of_sample()
    jobs = (partial(_read, priors, index, len(objects)) for index, objects in samples.items())
    for objects, (maps, mass, part) in zip(samples.values(), prefetch(jobs), strict=True):
        for subject, values, share in zip(objects, maps, mass, strict=True):
            _add(sums, subject, values, share, part)
        on_sample(len(objects))
    return sums


def _read(priors: Priors, index: int, objects: int) -> tuple[np.ndarray, np.ndarray, Box]:
    """A sample's maps float16 [n, C, P], their attention mass float32 [n, C], the image's part of the grid."""
    maps, part = attention_of(priors, index)
    slot = priors.rows[index].slot
    return on_image(maps, part), priors.store.read("attention_mass", slot, slot + objects), part


def _add(sums: Sums, subject: Subject, maps: np.ndarray, mass: np.ndarray, part: Box) -> None:
    masks = [decode(mask) for mask in (subject.mask, subject.other) if mask is not None]
    both, either = overlaps(maps, at_centres(masks, part))
    values = torch.from_numpy(maps).float()
    bin, seen = subject.bin, slice(len(masks))
    sums.objects[bin] += 1
    sums.both[bin][seen] += both
    sums.either[bin][seen] += either
    sums.iou[bin][seen] += both / np.maximum(either, 1)
    sums.hits[bin][seen] += touched(masks, part)[:, values.argmax(1).numpy()]
    sums.mass[bin] += mass
    sums.entropy[bin] += entropy(values).numpy()


def touched(masks: list[np.ndarray], part: Box) -> np.ndarray:
    """R masks, bool [height, width] -> bool [R, P]: the cells that any pixel of the mask lies in.

    For pointing. A cell's centre would never lie on an object smaller than a cell: no map could point at it.
    """
    size = (part.height, part.width)
    frames = [F.adaptive_max_pool2d(torch.from_numpy(mask.astype(np.float32))[None], size) for mask in masks]
    return (torch.cat(frames) > 0).flatten(1).numpy()


def entropy(maps: Tensor) -> Tensor:
    """float32 [C, P] -> [C]: Shannon's entropy of each map's shares of its sum, over log P: in [0, 1].

    1 for the same on all cells, and for a map without attention on the image.
    """
    total = maps.sum(1)
    logs = (maps * maps.clamp_min(torch.finfo(maps.dtype).tiny).log()).sum(1)
    return ((total.log() - logs / total) / np.log(max(2, maps.shape[1]))).nan_to_num(1.0, 1.0, 1.0)
