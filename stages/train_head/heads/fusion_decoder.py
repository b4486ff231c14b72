"""A U-Net that reads attention maps, SAM's embedding of the image and the object's words together.

Letters: K objects, B samples, C attention maps, h x w the LMM's grid, S side of the LMM's square here, W the base
width, Ce channels of SAM's embedding and of the words' vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.train_head.heads.base import HeadBatch
from stages.train_head.heads.frames import move, positions
from stages.train_head.heads.mask_decoder import normalise, resize_longer

LEVELS = 3
MULTIPLE = 2 ** (LEVELS - 1)
GROUPS = 8
FLOOR = 0.1
"""Of maps with mean 1: attention spans decades, and convolutions see its logarithm above this."""


class WordBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the words scale and shift every channel of the first."""

    def __init__(self, inputs: int, outputs: int, words: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, outputs) for _ in range(2))
        self.words = nn.Linear(words, 2 * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """float [K, inputs, side, side], float [K, W] -> float [K, outputs, side, side]."""
        scale, shift = self.words(words)[..., None, None].chunk(2, dim=1)
        inner = F.relu(self.norms[0](self.first(x)) * (1 + scale) + shift)
        return F.relu(self.shortcut(x) + self.norms[1](self.second(inner)))


class FusionDecoder(nn.Module):
    """Attention [K, C, h, w], embeddings [B, Ce, e, e], words [K, Ce] -> features [K, W, S, S], the LMM's square."""

    def __init__(self, channels: int, embedding: int, words: int, input_size: int, width: int) -> None:
        """`channels`: C. `embedding`: Ce. `words`: length of the words' vector.

        `input_size`: S, unless the grid is finer. `width`: W, doubled twice.
        """
        super().__init__()
        self.input_size = input_size
        self.attention = nn.Conv2d(channels, width, 1)
        self.image = nn.Conv2d(embedding, width, 1)
        self.words = nn.Sequential(nn.LayerNorm(words), nn.Linear(words, width), nn.ReLU())
        fine, middle, coarse = (width * 2**level for level in range(LEVELS))
        self.down = nn.ModuleList(
            WordBlock(inputs, outputs, width)
            for inputs, outputs in ((2 * width + 3, fine), (fine, middle), (middle, coarse))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((coarse, middle), (middle, fine)))
        self.up = nn.ModuleList(WordBlock(side, side, width) for side in (middle, fine))

    def forward(self, batch: HeadBatch, words: Tensor) -> Tensor:
        """`words`: one vector [K, …] of each object's words."""
        words, skips = self.words(words), []
        x = self._inputs(batch)
        side = x.shape[-1]
        x = F.pad(x, (0, -side % MULTIPLE, 0, -side % MULTIPLE))  # what is halved twice must not be cut off
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x, words)
            skips.append(x)
        for lateral, block, skip in zip(self.lateral, self.up, reversed(skips[:-1]), strict=True):
            finer = F.interpolate(lateral(x), size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(skip + finer, words)
        return x[..., :side, :side]

    def _inputs(self, batch: HeadBatch) -> Tensor:
        """float [K, 2 W + 3, S, S]: attention, image and position, all over the LMM's square."""
        assert batch.embeddings is not None and batch.sam_boxes is not None
        grid = batch.attention.shape[-1]
        maps = (normalise(batch.attention) * grid**2 + FLOOR).log()
        attention = resize_longer(self.attention(maps), self.input_size)  # linear as resizing is, and cheaper before it
        side, sample = attention.shape[-1], batch.sample_of_object
        every = torch.arange(len(batch.lmm_boxes), device=sample.device)
        image = move(self.image(batch.embeddings), every, batch.sam_boxes, batch.lmm_boxes, side)
        place = positions(batch.lmm_boxes, side).to(image.dtype).to(image.device, non_blocking=True)
        return torch.cat([attention, torch.cat([image, place], dim=1)[sample]], dim=1)
