"""What a head is trained towards: masks in the frames of its outputs, and which answer tokens name an object.

Letters: B samples, K objects of the batch, n of one sample, S side of a frame, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.extract.images import Box


@dataclass(kw_only=True, slots=True)
class FrameTargets:
    """Masks in one frame; what lies outside of the image there counts in no loss."""

    mask: Tensor
    """uint8 [K, S, S]: 1 on the object."""
    valid: Tensor
    """uint8 [K, S, S]: 1 on the image, 0 on the padding."""

    def to(self, device: torch.device | str) -> FrameTargets:
        """The same on `device`."""
        return FrameTargets(
            mask=self.mask.to(device, non_blocking=True), valid=self.valid.to(device, non_blocking=True)
        )

    def pin_memory(self) -> FrameTargets:
        """The same where a GPU fetches it from by itself."""
        return FrameTargets(mask=self.mask.pin_memory(), valid=self.valid.pin_memory())


@dataclass(kw_only=True, slots=True)
class Targets:
    """The targets of one batch, in the order of its objects and answer tokens."""

    coarse: FrameTargets
    """In the LMM's square."""
    refined: FrameTargets | None
    """In SAM's square; None: the head does not refine."""
    keyword: Tensor
    """bool [A]: the token belongs to a word that names an object."""

    def to(self, device: torch.device | str) -> Targets:
        """The same on `device`."""
        refined = self.refined.to(device) if self.refined is not None else None
        keyword = self.keyword.to(device, non_blocking=True)
        return Targets(coarse=self.coarse.to(device), refined=refined, keyword=keyword)

    def pin_memory(self) -> Targets:
        """The same where a GPU fetches them from by itself."""
        refined = self.refined.pin_memory() if self.refined is not None else None
        return Targets(coarse=self.coarse.pin_memory(), refined=refined, keyword=self.keyword.pin_memory())


def frame_targets(masks: Sequence[np.ndarray], boxes: Sequence[Box], size: int) -> FrameTargets:
    """Every sample's masks in a square of side `size`.

    `masks`: B times bool [n, height, width] at the image's size; `boxes`: where each image lies in the square, at any
    side. The mask, resized by nearest neighbour to `box.scaled(size)`, fills that part.
    """
    frames = [_place(mask, box.scaled(size)) for mask, box in zip(masks, boxes, strict=True)]
    empty = torch.zeros((0, size, size), dtype=torch.uint8)
    return FrameTargets(
        mask=torch.cat([empty, *(mask for mask, _ in frames)]),
        valid=torch.cat([empty, *(valid for _, valid in frames)]),
    )


def _place(masks: np.ndarray, part: Box) -> tuple[Tensor, Tensor]:
    """bool [n, height, width] -> uint8 masks and valid region [n, S, S], the masks shown in `part`."""
    target = torch.zeros((len(masks), part.size, part.size), dtype=torch.uint8)
    valid = torch.zeros_like(target)
    if not len(masks):
        return target, valid
    inside = (slice(None), slice(part.top, part.top + part.height), slice(part.left, part.left + part.width))
    source = torch.from_numpy(np.ascontiguousarray(masks)).byte()
    # "nearest" would take the upper left corner of each cell, half a cell away from where bilinear logits are read.
    target[inside] = F.interpolate(source[:, None], size=(part.height, part.width), mode="nearest-exact")[:, 0]
    valid[inside] = 1
    return target, valid
