"""Moving feature maps between the squares in which the LMM and SAM see an image.

Letters: B samples, K maps of features, D channels, s and t sides of the source and of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.extract.images import Box


def move(features: Tensor, sample: Tensor, source: Sequence[Box], target: Sequence[Box], size: int) -> Tensor:
    """float [K, D, s, s] over the source's squares -> float [K, D, t, t] over the target's, t = `size`.

    `sample`: int64 [K], the sample of each; `source`, `target`: B boxes, where its image lies in either square. Every
    target pixel's centre is read bilinearly where the same point of the image lies in the source (at its outermost
    pixels: those); pixels outside of the image are 0. Rows and columns apart: two small matrices per sample.
    """
    side = features.shape[-1]
    pairs = list(zip(source, target, strict=True))
    rows = torch.stack([_axis((a.top, a.height, a.size), (b.top, b.height, b.size), side, size) for a, b in pairs])
    columns = torch.stack([_axis((a.left, a.width, a.size), (b.left, b.width, b.size), side, size) for a, b in pairs])
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):  # eight bits of a coordinate are no coordinate
        y, x = (m.to(features.dtype).to(features.device, non_blocking=True) for m in (rows, columns))
        return y[sample][:, None] @ features @ x[sample][:, None].transpose(-1, -2)


def positions(boxes: Sequence[Box], size: int) -> Tensor:
    """float32 [B, 3, t, t]: where each pixel's centre lies in the image (y and x from -1 to 1), and 1 inside, else 0.

    Outside of the image all three are 0.
    """
    planes = []
    for box in boxes:
        y, x = _share(box.top, box.height, box.size, size), _share(box.left, box.width, box.size, size)
        inside = _inside(y)[:, None] * _inside(x)
        planes.append(torch.stack([inside * (2 * y[:, None] - 1), inside * (2 * x - 1), inside]))
    return torch.stack(planes).float()


def _axis(source: tuple[int, int, int], target: tuple[int, int, int], side: int, size: int) -> Tensor:
    """float64 [size, side]: how a row of the target is made of a row of the source. Both: (start, extent, square)."""
    start, extent, square = source
    share = _share(*target, size)
    at = ((start + share * extent) / square * side - 0.5).clamp(0, side - 1)
    weights = (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)  # bilinear: a tent around every pixel
    return weights * _inside(share)[:, None]


def _share(start: int, extent: int, square: int, size: int) -> Tensor:
    """float64 [size]: where each pixel's centre lies in the image, 0 at its first edge and 1 at its last."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * square / size
    return (centres - start) / extent


def _inside(share: Tensor) -> Tensor:
    """1 where a share is in the image, else 0."""
    return ((share >= 0) & (share <= 1)).to(share)


def image_part(boxes: Sequence[Box], size: int) -> Tensor:
    """bool [B, t, t]: True on the part of each square that shows the image, `box.scaled(t)`."""
    shown = torch.zeros((len(boxes), size, size), dtype=torch.bool)
    for mask, part in zip(shown, (box.scaled(size) for box in boxes), strict=True):
        mask[part.top : part.top + part.height, part.left : part.left + part.width] = True
    return shown
