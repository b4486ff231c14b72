"""The fusion head: attention, image and words meet in one small U-Net, whose features and mask prompt SAM's decoder.

F-LMM's head draws the coarse mask from attention alone; the image and the words come in only when SAM refines it. Here
the U-Net sees all three, and SAM's mask decoder gets its features beside the mask, box and text prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
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
    query: bool = False
    """Prompt SAM with one more token: the U-Net's features, averaged over the coarse mask."""
    last: bool = False
    """The words' vector is their mean and the last of them, not the mean alone."""
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
        words = channels * (2 if config.last else 1)
        self.decoder = FusionDecoder(shape.channels, channels, words, config.input_size, config.width)
        self.mask = nn.Conv2d(config.width, 1, 1)
        self.features = nn.Conv2d(config.width, channels, 1) if config.features else None
        if self.features is not None:  # at first SAM is prompted as it was trained to be
            nn.init.zeros_(self.features.weight)
            nn.init.zeros_(self.features.bias)  # type: ignore[arg-type]
        self.query = nn.Linear(config.width, channels) if config.query else None
        self.refiner = MaskRefiner(shape, config.sam, mask=True, box=True, text=True)
        self.selector = KeywordSelector(shape.width)

    def start_from(self, sam: Sam) -> None:
        """The refiner takes the prompt encoder and mask decoder of a SAM of `config.sam`'s sizes."""
        self.refiner.start_from(sam)

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention` must be on a square grid (the LMM's square)."""
        tokens = self.refiner.text_tokens(batch, len(batch.attention))
        found = self.decoder(batch, self._words(*tokens))
        coarse = self.mask(found)[:, 0].float()
        if self.query is not None:
            share = coarse.sigmoid() / coarse.sigmoid().sum((-2, -1), keepdim=True).clamp(min=1e-6)
            query = self.query(torch.einsum("kdyx,kyx->kd", found, share.to(found)))
            tokens = (tokens[0] + 1, torch.cat([query[:, None].to(tokens[1]), tokens[1]], dim=1))
        refined = self.refiner.refine(coarse, batch, tokens, self._dense(found, batch))
        return HeadOutput(coarse=coarse, refined=refined, keyword=self.selector(batch.answer_hidden))

    def _words(self, counts: Tensor, tokens: Tensor) -> Tensor:
        """int64 [K], float [K, most, Ce] with zeros after an object's last -> one vector per object; 0 without any."""
        mean = tokens.sum(1) / counts.clamp(min=1)[:, None]
        if not self.config.last:
            return mean
        if not tokens.shape[1]:
            return torch.cat([mean, mean], dim=1)
        last = tokens[torch.arange(len(tokens), device=tokens.device), (counts - 1).clamp(min=0)]
        return torch.cat([mean, last], dim=1)

    def _dense(self, found: Tensor, batch: HeadBatch) -> Tensor | None:
        """Features [K, W, S, S] over the LMM's square -> dense prompts [K, Ce, e, e] over SAM's."""
        if self.features is None or batch.sam_boxes is None:
            return None
        moved = move(found, batch.sample_of_object, batch.lmm_boxes, batch.sam_boxes, self.config.sam.grid)
        return self.features(moved)

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)

    @property
    def refined_size(self) -> int | None:
        return self.config.sam.mask_size

    @classmethod
    def from_values(cls, shape: PriorShape, values: dict[str, Any]) -> Self:
        sam = {"sam": SamConfig.from_dict(values["sam"])} if "sam" in values else {}
        return cls(shape, FusionConfig(**{**values, **sam}))
