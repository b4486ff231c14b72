"""The mask decoder of F-LMM: a small U-Net that reads attention maps as channels and draws coarse mask logits.

Letters: K objects, C attention maps, h x w the LMM's grid, S the longer side after upsampling, W the base width.
The names of the parameters are those of the published checkpoints (below `mask_head.`).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 4
MULTIPLE = 2 ** (LEVELS - 1)
"""Sides must be multiples of this to be halved three times."""


class ConvBlock(nn.Module):
    """Convolution without bias, GroupNorm over all channels, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.gn = nn.GroupNorm(1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x)))


class DoubleConv(nn.Module):
    """Two 3x3 blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvBlock(inputs, outputs, 3), ConvBlock(outputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Upsample(nn.Module):
    """Bilinear, twice the size, then a 1x1 block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.interp_upsample = nn.Sequential(resize, ConvBlock(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.interp_upsample(x)


class UpBlock(nn.Module):
    """One step of the way up: the skipped level's maps first, then the upsampled ones, two blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_block = DoubleConv(2 * outputs, outputs)
        self.upsample = Upsample(inputs, outputs)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return self.conv_block(torch.cat([skip, self.upsample(x)], dim=1))


class UNetMaskDecoder(nn.Module):
    """Attention maps [K, C, h, w] -> coarse logits [K, S·h/max(h, w), S·w/max(h, w)], both over the same frame."""

    def __init__(self, channels: int, input_size: int = 64, base_width: int = 64) -> None:
        """`channels`: C. `input_size`: S, unless the grid is finer. `base_width`: W, doubled at each of four levels."""
        super().__init__()
        self.input_size = input_size
        widths = [base_width * 2**level for level in range(LEVELS)]
        # The levels are Sequentials, and the finest step up comes first, because the published names say so.
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(DoubleConv(channels, base_width)),
                *(nn.Sequential(nn.MaxPool2d(2), DoubleConv(fine, coarse)) for fine, coarse in pairwise(widths)),
            ]
        )
        self.decoder = nn.ModuleList(UpBlock(2 * width, width) for width in widths[:-1])
        self.conv_seg = nn.Conv2d(base_width, 1, 1)

    def forward(self, attention: Tensor) -> Tensor:
        """`attention`: any float [K, C, h, w], non-negative, at any scale. Returns float32 logits."""
        maps = resize_longer(normalise(attention), self.input_size)
        height, width = maps.shape[-2:]
        padded = F.pad(maps, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        logits = self.conv_seg(self._features(padded))[:, 0, :height, :width]
        return logits.to(torch.promote_types(attention.dtype, torch.float32))  # under autocast too

    def _features(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for step, skip in zip(reversed(self.decoder), reversed(skips[:-1]), strict=True):
            x = step(skip, x)
        return x


def normalise(attention: Tensor) -> Tensor:
    """Each map divided by its sum over the grid, in float32 at least; a map of zeros stays zero."""
    maps = attention.to(torch.promote_types(attention.dtype, torch.float32))
    return maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def resize_longer(maps: Tensor, size: int) -> Tensor:
    """Bilinear, so that the longer side is `size`; maps that are finer already keep their size. Float32 at least."""
    height, width = maps.shape[-2:]
    longer = max(height, width)
    if longer >= size:
        return maps
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    down, across = (_bilinear(side, max(1, side * size // longer)) for side in (height, width))
    with torch.autocast(maps.device.type, enabled=False):
        down, across = (m.to(maps.dtype).to(maps.device, non_blocking=True) for m in (down, across))
        return down @ maps @ across.T


@lru_cache(maxsize=8)
def _bilinear(source: int, target: int) -> Tensor:
    """float64 [target, source]: F.interpolate's bilinear (align_corners=False) along one axis, as a matrix.

    For thousands of small maps two products of matrices take a tenth of the time of torch's kernel for images.
    """
    unit = torch.eye(source, dtype=torch.float64)[None]
    return F.interpolate(unit, size=target, mode="linear", align_corners=False)[0].T.contiguous()
