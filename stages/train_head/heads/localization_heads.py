"""Training-free grounding: a few attention maps that look at one place, smoothed, summed, thresholded.

After "Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (arXiv 2503.06287), from
the idea. The maps are chosen on the training split: those that look at the image at all, and of them those whose
attention most often falls apart into the fewest regions; no mask is looked at. Two things differ: an object's map is
the mean over its words, and the chosen maps count equally, for the cache scales each to mean 1.

Letters: K objects, C attention maps, k chosen ones, h x w the LMM's grid, S side of the masks, N any number of maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from manifests.errors import ModelError
from manifests.masks import decode
from stages.extract.images import Box
from stages.extract.sam import SAM_PRESETS, SamConfig
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.frames import image_part
from stages.train_head.heads.mask_decoder import normalise, resize_longer
from stages.train_head.heads.mask_refiner import MaskRefiner
from stages.train_head.targets import FrameTargets, frame_targets

if TYPE_CHECKING:
    from stages.train_head.data import PriorsLike

ChooseBy = Literal["entropy", "iou"]
THRESHOLDS = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Times the mean: those that are tried where masks may be looked at."""


@dataclass(kw_only=True, slots=True, frozen=True)
class LocalizationConfig:
    """How the maps are chosen and what is made of them; with the defaults no mask is looked at."""

    maps: int = 3
    """k, how many maps are chosen."""
    choose_by: ChooseBy = "entropy"
    """entropy: few regions, without masks; iou: the maps that agree best with the masks of the training split."""
    candidates: int = 10
    """entropy: of each object so many maps of the lowest entropy get a vote."""
    threshold: float = 1.0
    """Times the mean of the summed map over the image; 0: the best one on the masks of the training split."""
    sigma: float = 1.0
    """Of the Gaussian that smooths the maps, cells of the LMM's grid."""
    samples: int = 200
    """Of the training split, evenly spread: on so many the choice is made."""
    input_size: int = 64
    """S: the summed map is upsampled to this side (a finer grid is taken as it is); 0: never."""
    refiner: bool = False
    """Prompt a frozen SAM with the mask and its box."""
    sam: SamConfig = SAM_PRESETS["vit_l"]
    """The SAM that made the embeddings."""

    def __post_init__(self) -> None:
        if self.choose_by not in get_args(ChooseBy):
            raise ValueError(f"choose_by must be one of {', '.join(get_args(ChooseBy))}, not {self.choose_by!r}")
        for name in ("maps", "candidates", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("threshold", "input_size"):
            if not getattr(self, name) >= 0:  # also for nan
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")


class LocalizationHeads(Head):
    """No trainable weights: `fit` chooses; what it chose is stored with the head."""

    name: ClassVar[str] = "localization-heads"
    Config: ClassVar[type] = LocalizationConfig
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"demo": {"input_size": 32}}
    config: LocalizationConfig
    chosen: Tensor
    """int64 [k], the maps in the order of their numbers; -1 before `fit`."""
    threshold: Tensor
    """float32 [], times the mean."""

    def __init__(self, shape: PriorShape, config: LocalizationConfig) -> None:
        super().__init__(shape, config)
        if config.maps > shape.channels:
            raise ValueError(f"maps is {config.maps}, but the cache has {shape.channels}")
        self.register_buffer("chosen", torch.full((config.maps,), -1))
        self.register_buffer("threshold", torch.tensor(float(config.threshold or 1)))
        self.refiner = MaskRefiner(shape, config.sam, mask=True, box=True, text=False) if config.refiner else None
        self.requires_grad_(False)

    def start_from(self, sam: Sam) -> None:
        """The refiner, if there is one, is the prompt encoder and mask decoder of that SAM, and stays it."""
        if self.refiner is not None:
            self.refiner.start_from(sam)

    def fit(self, priors: PriorsLike, indices: Sequence[int]) -> None:
        """Choose the maps, and the threshold if the config leaves it open, on some of these samples."""
        device = self.chosen.device
        scores = self._agreement(priors, indices) if self.config.choose_by == "iou" else self._votes(priors, indices)
        best = scores.argsort(descending=True, stable=True)[: self.config.maps]
        self.chosen.copy_(best.sort().values.to(device))
        if not self.config.threshold:
            found = []
            for maps, _, masks, box in self._read(priors, indices):
                ratio = self._ratio(maps[:, self.chosen.cpu()], [box] * len(maps))
                found.append(ious(ratio[:, None], frame_targets([masks], [box], ratio.shape[-1])))
            self.threshold.fill_(THRESHOLDS[int(torch.cat(found).mean((0, 1)).argmax())])

    def forward(self, batch: HeadBatch) -> HeadOutput:
        """`batch.attention`: on a square grid. ModelError: the maps were not chosen yet."""
        if (self.chosen < 0).any():
            raise ModelError(f"the head {self.name} has not chosen its maps; train-head does that, or head.fit(…)")
        boxes = [box for box, count in zip(batch.lmm_boxes, batch.objects, strict=True) for _ in range(count)]
        ratio = self._ratio(batch.attention[:, self.chosen], boxes)
        coarse = (ratio.clamp(min=1e-3) / self.threshold).log()
        refined = self.refiner(coarse, batch) if self.refiner is not None else None
        return HeadOutput(coarse=coarse, refined=refined)

    def _ratio(self, maps: Tensor, boxes: Sequence[Box]) -> Tensor:
        """Chosen maps [K, k, h, w] -> their smoothed sum [K, S, S], in multiples of its mean over the image."""
        inside = image_part(boxes, maps.shape[-1]).to(maps)
        total = smooth(normalise(maps), inside[:, None], self.config.sigma).sum(1, keepdim=True)
        total = resize_longer(total, self.config.input_size)[:, 0]
        shown = image_part(boxes, total.shape[-1]).to(total)
        mean = (total * shown).sum((-2, -1), keepdim=True) / shown.sum((-2, -1), keepdim=True)
        return total * shown / mean.clamp(min=1e-12)

    def _votes(self, priors: PriorsLike, indices: Sequence[int]) -> Tensor:
        """float64 [C]: for how many objects each map is among those of the lowest entropy; -1 for the left out ones."""
        mass = torch.stack([m for _, each, _, _ in self._read(priors, indices) for m in each]).mean(0)
        kept = attentive(mass, self.config.maps)
        votes = torch.full((len(mass),), -1.0, dtype=torch.float64)
        votes[kept] = 0
        for maps, _, _, box in self._read(priors, indices):
            inside = image_part([box], maps.shape[-1])
            entropy, area = spatial_entropy(maps[:, kept], inside)
            for row in range(len(maps)):
                order = np.lexsort((area[row].numpy(), entropy[row].numpy()))  # of two with one region the smaller
                votes[kept[order[: self.config.candidates].copy()]] += 1
        return votes

    def _agreement(self, priors: PriorsLike, indices: Sequence[int]) -> Tensor:
        """float64 [C]: of each map, smoothed, the mean IoU with the masks at its best threshold."""
        found = []
        for maps, _, masks, box in self._read(priors, indices):
            inside = image_part([box], maps.shape[-1]).to(maps)[:, None]
            found.append(ious(smooth(maps, inside, self.config.sigma), frame_targets([masks], [box], maps.shape[-1])))
        return torch.cat(found).mean(0).amax(1)

    def _read(self, priors: PriorsLike, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, np.ndarray, Box]]:
        """Some samples: maps float32 [n, C, h, w], their mass float64 [n, C], masks bool [n, H, W], the image's box."""
        usable = [index for index in indices if index not in priors.failures]
        most = min(len(usable), self.config.samples)
        picked = slice(None) if self.shape.maps is None else list(self.shape.maps)
        for index in (usable[i * len(usable) // most] for i in range(most)):
            item = priors.read(index)
            if item is None or not len(item.attention):
                continue
            top, left, height, width, size = item.box
            yield (
                torch.from_numpy(item.attention[:, picked].astype(np.float32)),
                torch.from_numpy(item.attention_mass[:, picked].astype(np.float64)),
                np.stack([decode(each.mask) for each in priors.samples[index].objects]),
                Box(top=top, left=left, height=height, width=width, size=size),
            )

    def coarse_size(self, grid: int) -> int:
        return max(grid, self.config.input_size)

    @property
    def refined_size(self) -> int | None:
        return self.config.sam.mask_size if self.refiner is not None else None


def attentive(mass: Tensor, least: int) -> Tensor:
    """int64: the maps [of C] that look at the image: those above the elbow of the sorted masses; at least so many.

    The elbow is where the curve of the masses, falling, is farthest below the line from its first to its last point.
    """
    order = mass.argsort(descending=True, stable=True)
    curve = mass[order]
    line = torch.linspace(0, 1, len(curve), dtype=curve.dtype) * (curve[-1] - curve[0]) + curve[0]
    return order[: max(least, int((line - curve).argmax()) + 1)].sort().values


def spatial_entropy(maps: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Maps float [..., h, w], image part bool [..., h, w] -> entropy float64 [...] and area [...] of what is attended.

    Attended are the cells above the map's mean over the image. Cells that touch at an edge or a corner are a region;
    the entropy is that of the regions' shares of the area, in nats: 0 for one region, infinite for none.
    """
    mean = (maps * inside).sum((-2, -1), keepdim=True) / inside.sum((-2, -1), keepdim=True)
    attended = ((maps > mean) & inside).flatten(0, -3)
    labels = regions(attended).flatten(1)
    sizes = torch.zeros(len(labels), labels.shape[1] + 1, dtype=torch.float64)
    sizes.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float64))
    area = sizes[:, 1:].sum(1)
    shares = sizes[:, 1:] / area.clamp(min=1)[:, None]
    entropy = torch.special.entr(shares).sum(1).masked_fill(area == 0, math.inf)
    return entropy.view(maps.shape[:-2]), area.view(maps.shape[:-2])


def regions(binary: Tensor) -> Tensor:
    """bool [N, h, w] -> int64 [N, h, w]: the same positive number for all cells of a region, 0 outside of all."""
    count, height, width = binary.shape
    flat = binary.flatten(1)
    labels = torch.arange(1, height * width + 1) * flat
    while True:  # every cell takes the largest label around it, then the label of the cell that its label names
        around = F.max_pool2d(labels.view(count, 1, height, width).double(), 3, stride=1, padding=1).long()
        spread = around.flatten(1) * flat
        jumped = F.pad(spread, (1, 0)).gather(1, spread)
        if torch.equal(jumped, labels):
            return labels.view(count, height, width)
        labels = jumped


def smooth(maps: Tensor, inside: Tensor, sigma: float) -> Tensor:
    """Maps [N, c, h, w] averaged with Gaussian weights over the image's cells within 3 sigma; 0 where there are none.

    `inside`: 1 on the image, else 0, [N or 1, 1, h, w]. Cells outside of it, or of the grid, have no weight; those next
    to it get what is near them, so that resizing does not mix darkness into the image's edge.
    """
    side = maps.shape[-1]
    distance = torch.arange(side, device=maps.device, dtype=maps.dtype)
    distance = (distance[:, None] - distance).abs()
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= 3 * sigma)
    return (weights @ (maps * inside) @ weights) / (weights @ inside @ weights).clamp(min=1e-12)


def ious(values: Tensor, frame: FrameTargets) -> Tensor:
    """float64 [n, c, thresholds]: IoU of `values` [n, c, s, s] above each of THRESHOLDS with n masks; 1: both empty."""
    truth, valid = frame.mask.bool()[:, None], frame.valid.bool()[:, None]
    found = []
    for threshold in THRESHOLDS:
        above = (values > threshold) & valid
        both, either = ((each & valid).sum((-2, -1)) for each in (above & truth, above | truth))
        found.append(torch.where(either > 0, both / either.clamp(min=1), 1.0))
    return torch.stack(found, dim=-1).double()
