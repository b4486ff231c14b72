"""The smallest head: a weighted sum of the attention maps. Its weights answer the question which maps matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.keyword_selector import KeywordSelector
from stages.train_head.heads.mask_decoder import normalise, resize_longer


@dataclass(kw_only=True, slots=True, frozen=True)
class LinearConfig:
    """The one choice of a `LinearHead`."""

    input_size: int = 64
    """S: side of the masks (a finer grid of attention is taken as it is); 0: that of the grid."""

    def __post_init__(self) -> None:
        if self.input_size < 0:
            raise ValueError(f"input_size must not be negative, not {self.input_size}")


class LinearHead(Head):
    """One 1x1 convolution over maps of mean 1 -> coarse logits; answer tokens -> keyword logits.

    Maps of mean 1 make the weights comparable: a weight of 0.5 adds half a logit where a map is at its mean.
    """

    name: ClassVar[str] = "linear"
    Config: ClassVar[type] = LinearConfig
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"demo": {"input_size": 32}}
    config: LinearConfig

    def __init__(self, shape: PriorShape, config: LinearConfig) -> None:
        """All weights are 0: what they become is what the training samples said, without noise of a start."""
        super().__init__(shape, config)
        self.maps = nn.Conv2d(shape.channels, 1, 1)
        nn.init.zeros_(self.maps.weight)
        nn.init.zeros_(self.maps.bias)  # type: ignore[arg-type]
        self.selector = KeywordSelector(shape.width)

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention`: on a square grid."""
        height, width = batch.attention.shape[-2:]
        logits = self.maps(normalise(batch.attention) * (height * width))
        # Resizing and weighting are linear: in this order one map is resized instead of all.
        coarse = resize_longer(logits, self.config.input_size)[:, 0].float()
        return HeadOutput(coarse=coarse, keyword=self.keywords(batch))

    @torch.no_grad()
    def weights_by_map(self) -> Tensor:
        """float32 [C]: of each attention map its weight, logits per multiple of the map's mean."""
        return self.maps.weight.flatten().clone()

    def keywords(self, batch: HeadBatch) -> Tensor:
        return self.selector(batch.answer_hidden)

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)
