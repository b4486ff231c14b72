"""What every grounding head takes and gives, and how it is stored.

Letters: B samples, K objects, T object tokens, A answer tokens, C attention maps of an object, M layers, d the LMM's
width, h x w the LMM's image grid, S side of the coarse logits, e side of SAM's embedding, Ce its channels.

Frames: the LMM sees the image inside a square (`lmm_boxes`), SAM inside another (`sam_boxes`). Attention and coarse
logits cover the LMM's whole square, embeddings and refined logits SAM's whole square; `to_image_masks` leads back.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.errors import ModelError
from stages.extract.images import Box
from stages.extract.sam import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_weights


@dataclass(kw_only=True, slots=True)
class HeadBatch:
    """B samples with their objects and tokens in one row each: all that a head may look at."""

    attention: Tensor
    """float [K, C, h, w], maps over the LMM's square; a head that needs them normalised does it itself."""
    hidden: Tensor
    """float32 [T, M, d], the objects' tokens, all layers."""
    hidden_object: Tensor
    """int64 [T], the object (row of `attention`) of each of those tokens; tokens of one object in reading order."""
    sample_of_object: Tensor
    """int64 [K], the sample of each object."""
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

    def objects_of(self, sample: int) -> Tensor:
        """int64: the rows of one sample's objects, in their order."""
        return (self.sample_of_object == sample).nonzero().flatten()

    def to(self, device: torch.device | str) -> HeadBatch:
        """The same batch with its tensors on `device`, all of them float32; pinned ones on their way meanwhile."""
        return replace(
            self,
            attention=self.attention.to(device, non_blocking=True).float(),
            hidden=self.hidden.to(device),
            hidden_object=self.hidden_object.to(device),
            sample_of_object=self.sample_of_object.to(device),
            answer_hidden=self.answer_hidden.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device, non_blocking=True).float(),
        )


@dataclass(kw_only=True, slots=True)
class HeadOutput:
    """Logits; a probability is their sigmoid, a mask is where they are above 0."""

    coarse: Tensor
    """float32 [K, S, S] over the LMM's square."""
    refined: Tensor | None
    """float32 [K, 4e, 4e] over SAM's square; None: the head has no refiner."""
    keyword: Tensor
    """float32 [A]: does this answer token name an object?"""


@dataclass(kw_only=True, slots=True, frozen=True)
class PriorShape:
    """What a head has to know of the cache it reads: the shapes of an LMM's priors."""

    channels: int
    """C, attention maps of an object."""
    layers: int
    """M, layers of hidden states."""
    width: int
    """d, width of hidden states."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, not {getattr(self, field.name)}")


class Head(nn.Module, ABC):
    """A grounding head. A new one is a subclass with `name`, `forward`, its two sizes and `from_values`.

    `__init__(shape, config)`: `config` is a dataclass of the head's own choices, `dataclasses.asdict` of which is JSON.
    """

    name: ClassVar[str]
    """How commands and stored heads call it."""

    def __init__(self, shape: PriorShape, config: Any) -> None:
        super().__init__()
        self.shape = shape
        self.config = config

    @abstractmethod
    def forward(self, batch: HeadBatch) -> HeadOutput:
        """Logits of all objects and all answer tokens of the batch."""

    @abstractmethod
    def coarse_size(self, grid: int) -> int:
        """S for attention maps of `grid` x `grid`."""

    @property
    @abstractmethod
    def refined_size(self) -> int | None:
        """4e; None: the head does not refine and needs no SAM embeddings."""

    @classmethod
    @abstractmethod
    def from_values(cls, shape: PriorShape, values: dict[str, Any]) -> Self:
        """An untrained head from `asdict(config)` after a trip through JSON.

        What is not in `values` takes its default ({}: all of them); an unknown key is a TypeError.
        """

    def start_from(self, sam: Sam) -> None:
        """Takes over the weights that the head shares with a trained SAM; called once, before training."""

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`, then `config.json`: a folder that has the second is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        description = {"head": self.name, "shape": asdict(self.shape), "config": asdict(self.config)}
        partial = folder / f"{CONFIG_FILE}.partial"
        partial.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / CONFIG_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The head that `save` stored, on the CPU, in eval mode.

        ModelError: no head there, another class's, or a config or weights with missing or unknown names.
        """
        description = read_description(folder)
        if description["head"] != cls.name:
            raise ModelError(f"{folder} holds a head {description['head']!r}, not {cls.name!r}")
        try:
            head = cls.from_values(PriorShape(**description["shape"]), description["config"])
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"{folder / CONFIG_FILE} does not describe a head {cls.name!r}: {error}") from error
        missing = sorted(asdict(head.config).keys() - description["config"].keys())
        if missing:  # a default in its place could be another head than the one that was trained
            raise ModelError(f"{folder / CONFIG_FILE} does not describe a head {cls.name!r}; missing: {missing}")
        weights = folder / WEIGHTS_FILE
        load_weights(head, read_weights(weights), str(weights))
        return head.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """`config.json` of a stored head: its name ("head"), the priors' shape, its config."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ModelError(f"no head in {folder}: {CONFIG_FILE} is missing (never trained there, or not to the end)")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    wanted = {"head", "shape", "config"}
    found = set(description) if isinstance(description, dict) else set()
    if found != wanted:
        raise ModelError(
            f"{file} does not describe a head; missing: {sorted(wanted - found)}, unknown: {sorted(found - wanted)}"
        )
    return description


def is_head(folder: Path) -> bool:
    """Did a head's `save` fill this folder?"""
    try:
        return bool(read_description(folder))
    except ModelError:
        return False


@dataclass(kw_only=True, slots=True)
class ImageLogits:
    """One sample's logits at the size of its image, n objects."""

    coarse: Tensor
    """float32 [n, height, width]."""
    refined: Tensor | None
    """float32 [n, height, width], or None."""


def to_image_masks(output: HeadOutput, batch: HeadBatch) -> list[ImageLogits]:
    """Each sample's logits at its image's own size: the image's part of either square, bilinear; masks are `> 0`."""
    results = []
    for sample, size in enumerate(batch.image_sizes):
        objects = batch.objects_of(sample)
        coarse = crop_resize(output.coarse[objects], batch.lmm_boxes[sample], size)
        refined = None
        if output.refined is not None and batch.sam_boxes is not None:
            refined = crop_resize(output.refined[objects], batch.sam_boxes[sample], size)
        results.append(ImageLogits(coarse=coarse, refined=refined))
    return results


def crop_resize(logits: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """float [n, S, S] over a square -> [n, *size]: the part `box.scaled(S)`, bilinear (align_corners=False)."""
    if not len(logits):
        return logits.new_zeros((0, *size))
    part = box.scaled(logits.shape[-1])
    crop = logits[:, part.top : part.top + part.height, part.left : part.left + part.width]
    return F.interpolate(crop[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
