"""What every grounding head takes and gives, and how it is stored.

Letters: B samples, K objects, T object tokens, A answer tokens, C attention maps of an object, M layers, d the LMM's
width, h x w the LMM's image grid, S side of the coarse logits, e side of SAM's embedding, Ce its channels.

Frames: the LMM sees the image inside a square (`lmm_boxes`), SAM inside another (`sam_boxes`). Attention and coarse
logits cover the LMM's whole square, embeddings and refined logits SAM's whole square; `to_image_masks` leads back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from stages.extract.images import Box
from stages.extract.sam import SamConfig
from stages.train_head.heads.hub import OnHub

if TYPE_CHECKING:
    from stages.train_head.data import PriorsLike


@dataclass(kw_only=True, slots=True)
class HeadBatch:
    """B samples with their objects and tokens in one row each: all that a head may look at."""

    attention: Tensor
    """float [K, C, h, w], maps over the LMM's square; a head that needs them normalised does it itself."""
    hidden: Tensor
    """float32 [T, M, d], the objects' tokens, all layers; times `hidden_scale`, where that is given."""
    hidden_object: Tensor
    """int64 [T], the object (row of `attention`) of each of those tokens; tokens of one object in reading order."""
    sample_of_object: Tensor
    """int64 [K], the sample of each object, ascending."""
    answer_hidden: Tensor
    """float32 [A, d], every answer token, last layer."""
    lmm_boxes: list[Box]
    """B: where the image lies in the LMM's square, in its pixels."""
    image_sizes: list[tuple[int, int]]
    """B: (height, width) of the images themselves."""
    embeddings: Tensor | None = None
    """float [B, Ce, e, e], SAM's image embeddings; None where the head needs none."""
    sam_boxes: list[Box] | None = None
    """B: where the image lies in SAM's square, in its pixels; None where the head needs none."""
    hidden_scale: Tensor | None = None
    """float32 [T, M] of a batch on its way to a GPU, which multiplies for itself; a head never sees it."""
    objects: list[int] = field(default_factory=list)
    """B: how many objects each sample has; counted here, since a GPU would have to be waited for."""
    tokens: list[int] = field(default_factory=list)
    """K: how many tokens each object has in `hidden`; counted here."""

    def __post_init__(self) -> None:
        """ValueError: the objects of a sample are not side by side, in the samples' order."""
        if self.sample_of_object.is_cuda and len(self.tokens) == len(self.sample_of_object):
            return  # of a batch that was counted before it went there
        if (self.sample_of_object.diff() < 0).any():
            raise ValueError("sample_of_object must be ascending")
        self.objects = torch.bincount(self.sample_of_object, minlength=len(self.image_sizes)).tolist()
        self.tokens = torch.bincount(self.hidden_object, minlength=len(self.sample_of_object)).tolist()

    def objects_of(self, sample: int) -> slice:
        """The rows of one sample's objects."""
        start = sum(self.objects[:sample])
        return slice(start, start + self.objects[sample])

    def to(self, device: torch.device | str) -> HeadBatch:
        """The same batch for a head on `device`, all of it float32; what is pinned is on its way meanwhile."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        moved.attention = moved.attention.float()
        if moved.hidden_scale is not None:
            moved.hidden = moved.hidden.float() * moved.hidden_scale[..., None]
            moved.hidden_scale = None
        moved.embeddings = None if moved.embeddings is None else moved.embeddings.float()
        return moved

    def pin_memory(self) -> HeadBatch:
        """The same batch where a GPU fetches it from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> HeadBatch:
        return replace(
            self,
            attention=change(self.attention),
            hidden=change(self.hidden),
            hidden_object=change(self.hidden_object),
            sample_of_object=change(self.sample_of_object),
            answer_hidden=change(self.answer_hidden),
            embeddings=None if self.embeddings is None else change(self.embeddings),
            hidden_scale=None if self.hidden_scale is None else change(self.hidden_scale),
        )


@dataclass(kw_only=True, slots=True)
class HeadOutput:
    """Logits; a probability is their sigmoid, a mask is where they are above 0."""

    coarse: Tensor
    """float32 [K, S, S] over the LMM's square."""
    refined: Tensor | None = None
    """float32 [K, 4e, 4e] over SAM's square; None: the head does not refine."""
    keyword: Tensor | None = None
    """float32 [A]: does this answer token name an object? None: the head has no keyword selector."""


@dataclass(kw_only=True, slots=True, frozen=True)
class PriorShape:
    """What a head has to know of the cache it reads: the shapes of an LMM's priors."""

    channels: int
    """C, attention maps of an object that the head sees."""
    layers: int
    """M, layers of hidden states."""
    width: int
    """d, width of hidden states."""
    maps: tuple[int, ...] | None = None
    """Which of the cache's maps those C are, in this order; None: all of them."""

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.maps is not None:
            object.__setattr__(self, "maps", tuple(self.maps))
            if len(set(self.maps)) != self.channels or min(self.maps) < 0:
                raise ValueError(f"maps must name {self.channels} different maps, not {self.maps}")


class Head(nn.Module, OnHub, ABC):
    """A grounding head. A new one is a subclass with `name`, `Config`, `forward`, `coarse_size` (docs/new-head.md)."""

    name: ClassVar[str]
    """How commands and stored heads call it."""
    Config: ClassVar[type]
    """A frozen dataclass of the head's own choices, all with defaults; `dataclasses.asdict` of it is JSON."""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """What a preset ("demo") changes of the defaults, which are for the paper's LMMs."""
    priors: dict[str, Any] | None = None
    """Identity of the priors that it was trained on, stored with it; None: not known."""
    record: dict[str, Any]
    """How it came to be (data, recipe, validations, …), JSON, stored with it; {}: not known."""
    evaluation: dict[str, Any] | None = None
    """metrics.json of its evaluation, stored with it if there is one."""

    def __init__(self, shape: PriorShape, config: Any) -> None:
        """Random weights."""
        super().__init__()
        self.shape = shape
        self.config = config
        self.record = {}

    @abstractmethod
    def forward(self, batch: HeadBatch) -> HeadOutput:
        """Logits of all objects and all answer tokens of the batch. No object may depend on its neighbours."""

    @abstractmethod
    def coarse_size(self, grid: int) -> int:
        """S for attention maps of `grid` x `grid`."""

    @property
    def refined_size(self) -> int | None:
        """4e; None: the head does not refine and needs no SAM embeddings, and its batches have none."""
        return None

    @classmethod
    def from_values(cls, shape: PriorShape, values: dict[str, Any]) -> Self:
        """An untrained head from `asdict(config)` after a trip through JSON, where tuples have become lists.

        What is not in `values` takes its default ({}: all of them); an unknown key is a TypeError. `sam`, where a head
        has it, becomes the sizes of a SAM.
        """
        sam = {"sam": SamConfig.from_dict(values["sam"])} if "sam" in values else {}
        return cls(shape, cls.Config(**{**values, **sam}))

    def keywords(self, batch: HeadBatch) -> Tensor | None:
        """float32 [A], `HeadOutput.keyword` alone. A head that has it without its masks says so here, in less time."""
        return self(batch).keyword

    def start_from(self, sam: Sam) -> None:
        """Takes over the weights that the head shares with a trained SAM; called once, before training."""

    def fit(self, priors: PriorsLike, indices: Sequence[int]) -> None:
        """Chooses what is not learned by gradients, on these samples of `train`; called once, before the first step."""


@dataclass(kw_only=True, slots=True)
class ImageLogits:
    """One sample's logits at the size of its image, n objects."""

    coarse: Tensor
    """float32 [n, height, width]."""
    refined: Tensor | None
    """float32 [n, height, width], or None."""


def to_image_masks(output: HeadOutput, batch: HeadBatch) -> list[ImageLogits]:
    """Each sample's logits at its image's own size: the image's part of either square, bilinear; masks are `> 0`."""
    return [image_logits(output, batch, sample) for sample in range(len(batch.image_sizes))]


def image_logits(output: HeadOutput, batch: HeadBatch, sample: int) -> ImageLogits:
    """Those of one sample of the batch: a large photo's take some hundred megabytes."""
    objects, size = batch.objects_of(sample), batch.image_sizes[sample]
    coarse = crop_resize(output.coarse[objects], batch.lmm_boxes[sample], size)
    refined = None
    if output.refined is not None and batch.sam_boxes is not None:
        refined = crop_resize(output.refined[objects], batch.sam_boxes[sample], size)
    return ImageLogits(coarse=coarse, refined=refined)


def object_masks(
    output: HeadOutput, batch: HeadBatch, sample: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Coarse and refined mask of every object of one sample, bool [height, width] of its image, one after the other.

    The logits of all objects at the size of a photo would take gigabytes. refined: None if the head does not refine.
    """
    size = batch.image_sizes[sample]
    for k in range(len(output.coarse))[batch.objects_of(sample)]:
        coarse = crop_resize(output.coarse[k : k + 1], batch.lmm_boxes[sample], size)[0] > 0
        refined = None
        if output.refined is not None and batch.sam_boxes is not None:
            refined = (crop_resize(output.refined[k : k + 1], batch.sam_boxes[sample], size)[0] > 0).cpu().numpy()
        yield coarse.cpu().numpy(), refined


def crop_resize(logits: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """float [n, S, S] over a square -> [n, *size]: the part `box.scaled(S)`, bilinear (align_corners=False)."""
    if not len(logits):
        return logits.new_zeros((0, *size))
    part = box.scaled(logits.shape[-1])
    crop = logits[:, part.top : part.top + part.height, part.left : part.left + part.width]
    return F.interpolate(crop[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
