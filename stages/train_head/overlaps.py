"""How well do attention maps alone cover masks? All maps of an object at once, on the map's own grid.

Letters: n objects, C maps, P cells of the grid that show the image (row by row), R masks, T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cache.priors import Priors, read_maps
from manifests.errors import PipelineError
from stages.extract.images import Box
from stages.train_head.data import as_box, splits_of
from stages.train_head.targets import frame_targets

THRESHOLDS: Final = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # maps have mean 1
# Of each of the 65,536 float16 values, by its bits, the number of thresholds below it: six times as fast as comparing.
_LEVELS: Final = np.searchsorted(THRESHOLDS, np.arange(1 << 16).astype(np.uint16).view(np.float16)).astype(np.int32)


def spread(priors: Priors, split: str, most: int) -> list[int]:
    """At most so many samples of a split that did not fail, evenly spread. PipelineError where there is none.

    None is a reply that is searched for phrases: no mask belongs to a map of its words.
    """
    searched = priors.samples.searched()
    indices = [i for i in priors.samples.where(split=[split]) if not (i in priors.failures or searched[i])]
    if not indices:
        if any(searched[i] for i in priors.samples.where(split=[split])):
            raise PipelineError(
                f"{priors.store.name}: the samples of the split {split} are the LMM's own captions, searched for "
                f"phrases; no mask belongs to a map of theirs. Choose another split (it has {splits_of(priors)})"
            )
        raise PipelineError(f"{priors.store.name} has no sample of the split {split} (it has {splits_of(priors)})")
    count = min(len(indices), most)
    return [indices[number * len(indices) // count] for number in range(count)]


def attention_of(priors: Priors, index: int) -> tuple[np.ndarray, Box]:
    """float16 [n, C, h, w] of a sample that did not fail, and where the image lies in the square of that grid.

    The hidden states, which `Priors.read` would give too, stay on the disk.
    """
    row = priors.rows[index]
    return read_maps(priors.store, row.slot, row.slot + row.objects), as_box(row.box).scaled(priors.grid[0])


def on_image(maps: np.ndarray, part: Box) -> np.ndarray:
    """[..., h, w] -> [..., P]: the cells that show the image, padding left out."""
    cropped = maps[..., part.top : part.top + part.height, part.left : part.left + part.width]
    return np.ascontiguousarray(cropped).reshape(*maps.shape[:-2], -1)


def at_centres(masks: Sequence[np.ndarray], part: Box) -> np.ndarray:
    """R masks, bool [height, width] of any image -> bool [R, P]: is the pixel at the cell's centre on the mask?"""
    frames = frame_targets([mask[None] for mask in masks], [part] * len(masks), part.size)
    return on_image(frames.mask.numpy(), part).astype(bool)


def overlaps(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells in both, and in either, of every map above every threshold and of every mask.

    maps: float16 [C, P], contiguous, of mean 1 over the whole grid.  masks: bool [R, P].
    -> two int64 [R, C, T].
    """
    (channels, _), levels, kinds = maps.shape, len(THRESHOLDS) + 1, 1 << len(masks)
    kind = (masks * (1 << np.arange(len(masks)))[:, None]).sum(0, dtype=np.int32)  # which of the masks a cell is in
    places = (_LEVELS * kinds).take(maps.view(np.uint16))
    places += kind
    places += (np.arange(channels, dtype=np.int32) * levels * kinds)[:, None]
    counts = np.bincount(places.ravel(), minlength=channels * levels * kinds).reshape(channels, levels, kinds)
    above = counts[:, :0:-1].cumsum(1)[:, ::-1]  # [C, T, kinds]
    both = np.stack([above[..., np.arange(kinds) >> number & 1 == 1].sum(-1) for number in range(len(masks))])
    return both, above.sum(-1) + masks.sum(1)[:, None, None] - both
