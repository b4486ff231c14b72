"""The fusion head: attention, image and words meet in one small U-Net, whose features and mask prompt SAM's decoder.

F-LMM's head draws the coarse mask from attention alone; the image and the words come in only when SAM refines it. Here
the U-Net sees all three, and SAM's mask decoder gets its features beside the mask, box and text prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from segment_anything.modeling import Sam
from torch import Tensor, nn

from stages.extract.sam import SAM_PRESETS, SamConfig
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.frames import move
from stages.train_head.heads.fusion_decoder import GROUPS, FusionDecoder
from stages.train_head.heads.keyword_selector import KeywordSelector
from stages.train_head.heads.mask_refiner import MaskRefiner


@dataclass(kw_only=True, slots=True, frozen=True)
class FusionConfig:
    """Sizes of a `FusionHead`."""

    input_size: int = 64
    """S: side at which attention, image and words meet (a finer grid of attention is taken as it is); 0: that grid."""
    width: int = 64
    """Channels of the U-Net's first level, doubled at each of the next two."""
    features: bool = True
    """Prompt SAM with the U-Net's features, not with its mask, box and the words alone."""
    sam: SamConfig = SAM_PRESETS["vit_l"]
    """The SAM that made the embeddings."""

    def __post_init__(self) -> None:
        if self.input_size < 0:
            raise ValueError(f"input_size must not be negative, not {self.input_size}")
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f"width must be a positive multiple of {GROUPS}, not {self.width}")


class FusionHead(Head):
    """Attention maps, SAM embedding, words -> coarse logits and features -> SAM -> refined logits."""

    name: ClassVar[str] = "fusion-sam"
    Config: ClassVar[type] = FusionConfig
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"demo": {"input_size": 32, "width": 32}}
    config: FusionConfig

    def __init__(self, shape: PriorShape, config: FusionConfig) -> None:
        """Random weights; `start_from` gives the refiner a trained SAM's."""
        super().__init__(shape, config)
        channels = config.sam.channels
        self.decoder = FusionDecoder(shape.channels, channels, channels, config.input_size, config.width)
        self.mask = nn.Conv2d(config.width, 1, 1)
        self.features = nn.Conv2d(config.width, channels, 1) if config.features else None
        if self.features is not None:  # at first SAM is prompted as it was trained to be
            nn.init.zeros_(self.features.weight)
            nn.init.zeros_(self.features.bias)  # type: ignore[arg-type]
        self.refiner = MaskRefiner(shape, config.sam, mask=True, box=True, text=True)
        self.selector = KeywordSelector(shape.width)

    def start_from(self, sam: Sam) -> None:
        """The refiner takes the prompt encoder and mask decoder of a SAM of `config.sam`'s sizes."""
        self.refiner.start_from(sam)

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention` must be on a square grid (the LMM's square)."""
        counts, words = self.refiner.text_tokens(batch, len(batch.attention))
        found = self.decoder(batch, words.sum(1) / counts.clamp(min=1)[:, None])  # their mean; 0 without any
        coarse = self.mask(found)[:, 0].float()
        refined = self.refiner.refine(coarse, batch, (counts, words), self._dense(found, batch))
        return HeadOutput(coarse=coarse, refined=refined, keyword=self.keywords(batch))

    def _dense(self, found: Tensor, batch: HeadBatch) -> Tensor | None:
        """Features [K, W, S, S] over the LMM's square -> dense prompts [K, Ce, e, e] over SAM's."""
        if self.features is None or batch.sam_boxes is None:
            return None
        moved = move(found, batch.sample_of_object, batch.lmm_boxes, batch.sam_boxes, self.config.sam.grid)
        return self.features(moved)

    def keywords(self, batch: HeadBatch) -> Tensor:
        return self.selector(batch.answer_hidden)

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)

    @property
    def refined_size(self) -> int | None:
        return self.config.sam.mask_size
