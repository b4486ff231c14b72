"""The head of F-LMM: U-Net mask decoder, SAM mask refiner, keyword selector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from segment_anything.modeling import Sam
from torch import Tensor

from stages.extract.sam import SAM_PRESETS, SamConfig
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.keyword_selector import KeywordSelector
from stages.train_head.heads.mask_decoder import MULTIPLE, UNetMaskDecoder
from stages.train_head.heads.mask_refiner import MaskRefiner


@dataclass(kw_only=True, slots=True, frozen=True)
class GroundingConfig:
    """Sizes and parts of a `GroundingHead`; the defaults are the paper's."""

    input_size: int = 64
    """S: attention maps are upsampled to this side before the U-Net (a finer grid is taken as it is); 0: never."""
    base_width: int = 64
    """Channels of the U-Net's first level, doubled at each of the next three."""
    refiner: bool = True
    """Refine with SAM; without it the coarse masks are the result and no SAM embeddings are needed."""
    prompt_mask: bool = True
    """Prompt SAM with the coarse mask."""
    prompt_box: bool = True
    """Prompt SAM with the coarse mask's box."""
    prompt_text: bool = True
    """Prompt SAM with the object's hidden states."""
    sam: SamConfig = SAM_PRESETS["vit_l"]
    """The SAM that made the embeddings."""

    def __post_init__(self) -> None:
        if self.input_size < 0 or self.input_size % MULTIPLE:
            raise ValueError(f"input_size must be a multiple of {MULTIPLE}, not {self.input_size}")
        if self.base_width < 1:
            raise ValueError(f"base_width must be at least 1, not {self.base_width}")
        if self.refiner and not (self.prompt_mask or self.prompt_box or self.prompt_text):
            raise ValueError("a refiner needs at least one of prompt_mask, prompt_box and prompt_text")


class GroundingHead(Head):
    """Attention maps -> coarse logits -> (SAM) refined logits; answer tokens -> keyword logits."""

    name: ClassVar[str] = "unet-sam"
    Config: ClassVar[type] = GroundingConfig
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"demo": {"input_size": 32, "base_width": 16}}
    config: GroundingConfig

    def __init__(self, shape: PriorShape, config: GroundingConfig) -> None:
        """Random weights; `start_from` gives the refiner a trained SAM's."""
        super().__init__(shape, config)
        self.mask_head = UNetMaskDecoder(shape.channels, config.input_size, config.base_width)
        self.refiner = _refiner(shape, config) if config.refiner else None
        self.selector = KeywordSelector(shape.width)

    def start_from(self, sam: Sam) -> None:
        """The refiner, if there is one, takes the prompt encoder and mask decoder of a SAM of `config.sam`'s sizes."""
        if self.refiner is not None:
            self.refiner.start_from(sam)

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention` must be on a square grid (the LMM's square). ValueError: it is not, or C is another."""
        _, channels, height, width = batch.attention.shape
        if channels != self.shape.channels or height != width:
            raise ValueError(
                f"attention is {channels} maps of {height}x{width}, expected {self.shape.channels} on a square grid"
            )
        coarse = self.mask_head(batch.attention)
        refined = self.refiner(coarse, batch) if self.refiner is not None else None
        return HeadOutput(coarse=coarse, refined=refined, keyword=self.keywords(batch))

    def keywords(self, batch: HeadBatch) -> Tensor:
        return self.selector(batch.answer_hidden)

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)

    @property
    def refined_size(self) -> int | None:
        return self.config.sam.mask_size if self.refiner is not None else None


def _refiner(shape: PriorShape, config: GroundingConfig) -> MaskRefiner:
    return MaskRefiner(shape, config.sam, mask=config.prompt_mask, box=config.prompt_box, text=config.prompt_text)
