"""F-LMM's mask decoder and keyword selector without SAM: what the attention maps alone can draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.keyword_selector import KeywordSelector
from stages.train_head.heads.mask_decoder import MULTIPLE, UNetMaskDecoder


@dataclass(kw_only=True, slots=True, frozen=True)
class UNetConfig:
    """Sizes of a `UNetHead`; the defaults are the paper's."""

    input_size: int = 64
    """S: attention maps are upsampled to this side before the U-Net (a finer grid is taken as it is); 0: never."""
    base_width: int = 64
    """Channels of the U-Net's first level, doubled at each of the next three."""

    def __post_init__(self) -> None:
        if self.input_size < 0 or self.input_size % MULTIPLE:
            raise ValueError(f"input_size must be a multiple of {MULTIPLE}, not {self.input_size}")
        if self.base_width < 1:
            raise ValueError(f"base_width must be at least 1, not {self.base_width}")


class UNetHead(Head):
    """Attention maps -> U-Net -> coarse logits; answer tokens -> keyword logits."""

    name: ClassVar[str] = "unet"
    Config: ClassVar[type] = UNetConfig
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"demo": {"input_size": 32, "base_width": 16}}
    config: UNetConfig

    def __init__(self, shape: PriorShape, config: UNetConfig) -> None:
        super().__init__(shape, config)
        self.mask_head = UNetMaskDecoder(shape.channels, config.input_size, config.base_width)
        self.selector = KeywordSelector(shape.width)

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention`: on a square grid."""
        return HeadOutput(coarse=self.mask_head(batch.attention), keyword=self.keywords(batch))

    def keywords(self, batch: HeadBatch) -> Tensor:
        return self.selector(batch.answer_hidden)

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)
