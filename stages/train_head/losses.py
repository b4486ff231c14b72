"""The losses of F-LMM: sigmoid cross-entropy and naive DICE on masks, cross-entropy on keywords.

Letters: K objects, S side of a frame, A answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.train_head.heads.base import HeadOutput
from stages.train_head.targets import FrameTargets, Targets

DICE_EPS = 1.0


@dataclass(kw_only=True, slots=True)
class MaskLoss:
    """Scalars, means over the objects; both 0 where there are none."""

    bce: Tensor
    dice: Tensor


@dataclass(kw_only=True, slots=True)
class HeadLoss:
    """The parts of the training loss, each a scalar with a gradient."""

    coarse: MaskLoss
    refined: MaskLoss | None
    """None: the head does not refine."""
    keyword: Tensor | None
    """None: the head has no keyword selector."""

    @property
    def total(self) -> Tensor:
        """The sum of all parts, each with weight 1."""
        return torch.stack(list(self.parts().values())).sum()

    def parts(self, objects: float = 1.0, tokens: float = 1.0) -> dict[str, Tensor]:
        """The parts by name.

        objects, tokens: this batch's share of a step's objects and keyword tokens; so weighted, the parts of all
        batches of a step add up to its means, however the samples are dealt out to batches and workers.
        """
        found = {"coarse_bce": self.coarse.bce * objects, "coarse_dice": self.coarse.dice * objects}
        if self.refined is not None:
            found |= {"refined_bce": self.refined.bce * objects, "refined_dice": self.refined.dice * objects}
        if self.keyword is not None:
            found["keyword"] = self.keyword * tokens
        return found


def head_loss(output: HeadOutput, targets: Targets) -> HeadLoss:
    """All losses of one batch. ValueError: the head refines and there are no targets for it."""
    refined = None
    if output.refined is not None:
        if targets.refined is None:
            raise ValueError("the head gives refined masks, the targets have none")
        refined = mask_loss(output.refined, targets.refined)
    return HeadLoss(
        coarse=mask_loss(output.coarse, targets.coarse),
        refined=refined,
        keyword=None if output.keyword is None else keyword_loss(output.keyword, targets.keyword),
    )


def mask_loss(logits: Tensor, target: FrameTargets) -> MaskLoss:
    """float [K, S, S] against the image's part of that frame: per object, then the mean over objects.

    BCE: mean over the part's pixels. DICE: 1 - (2 Σ p·t + 1) / (Σ p + Σ t + 1) with p = sigmoid(logits).
    """
    if not len(logits):
        return MaskLoss(bce=logits.sum(), dice=logits.sum())  # 0, and still part of the graph
    valid, truth = target.valid.to(logits.dtype), target.mask.to(logits.dtype)
    pixels = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    bce = pixels.sum((-2, -1)) / valid.sum((-2, -1))
    probability = logits.sigmoid() * valid
    truth = truth * valid
    common = (probability * truth).sum((-2, -1))
    either = probability.sum((-2, -1)) + truth.sum((-2, -1))
    dice = 1 - (2 * common + DICE_EPS) / (either + DICE_EPS)
    return MaskLoss(bce=bce.mean(), dice=dice.mean())


def keyword_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of float logits [A] against bool or float [A]; 0 where there are no answer tokens."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
