"""The losses against loops over objects and pixels, written from their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from stages.train_head.heads.base import HeadOutput
from stages.train_head.losses import head_loss, keyword_loss, mask_loss
from stages.train_head.targets import FrameTargets, Targets


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain_mask_loss(logits: torch.Tensor, target: FrameTargets) -> tuple[float, float]:
    bces, dices = [], []
    for k in range(len(logits)):
        bce = common = predicted = true = 0.0
        pixels = 0
        for y in range(logits.shape[1]):
            for x in range(logits.shape[2]):
                if target.valid[k, y, x]:
                    p, t = sigmoid(logits[k, y, x].item()), int(target.mask[k, y, x])
                    bce -= math.log(p) if t else math.log(1 - p)
                    common, predicted, true, pixels = common + p * t, predicted + p, true + t, pixels + 1
        bces.append(bce / pixels)
        dices.append(1 - (2 * common + 1) / (predicted + true + 1))
    return sum(bces) / len(bces), sum(dices) / len(dices)


def random_targets(seed: int = 0) -> tuple[torch.Tensor, FrameTargets]:
    torch.manual_seed(seed)
    valid = torch.zeros(3, 6, 6, dtype=torch.uint8)
    valid[0, 1:5], valid[1, :, 2:], valid[2] = 1, 1, 1
    mask = (torch.rand(3, 6, 6) > 0.6).byte()
    mask[1] = 0  # an object too small for this frame
    return 2 * torch.randn(3, 6, 6), FrameTargets(mask=mask, valid=valid)


def test_equals_loops_over_pixels() -> None:
    logits, target = random_targets()
    loss = mask_loss(logits, target)
    assert (loss.bce.item(), loss.dice.item()) == pytest.approx(plain_mask_loss(logits, target), abs=1e-5)


def test_gradients_equal_finite_differences() -> None:
    logits, target = random_targets()
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (mask_loss(x, target).bce, mask_loss(x, target).dice), (logits,))


def test_padding_counts_in_nothing() -> None:
    logits, target = random_targets()
    logits.requires_grad_()
    loss = mask_loss(logits, target)
    (loss.bce + loss.dice).backward()
    outside = target.valid == 0
    assert logits.grad is not None
    assert (logits.grad[outside] == 0).all()
    assert (logits.grad[~outside] != 0).all()
    changed = mask_loss(torch.where(outside, 9.0, logits.detach()), target)
    marked = mask_loss(logits.detach(), FrameTargets(mask=target.mask | outside.byte(), valid=target.valid))
    for other in (changed, marked):
        torch.testing.assert_close(torch.stack([other.bce, other.dice]), torch.stack([loss.bce, loss.dice]).detach())


def test_objects_count_alike_whatever_their_images_shape() -> None:
    logits, target = random_targets()
    singles = [
        mask_loss(logits[k : k + 1], FrameTargets(mask=target.mask[k : k + 1], valid=target.valid[k : k + 1]))
        for k in range(3)
    ]
    torch.testing.assert_close(mask_loss(logits, target).bce, torch.stack([s.bce for s in singles]).mean())


def test_keywords() -> None:
    logits, target = torch.tensor([1.5, -2.0, 0.3]), torch.tensor([True, True, False])
    expected = -(math.log(sigmoid(1.5)) + math.log(sigmoid(-2.0)) + math.log(1 - sigmoid(0.3))) / 3
    assert keyword_loss(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_the_total_is_the_sum_and_nothing_at_all_is_zero() -> None:
    logits, target = random_targets()
    targets = Targets(coarse=target, refined=target, keyword=torch.tensor([True]))
    output = HeadOutput(coarse=logits, refined=-logits, keyword=torch.tensor([0.7]))
    loss = head_loss(output, targets)
    expected = sum(plain_mask_loss(logits, target)) + sum(plain_mask_loss(-logits, target)) - math.log(sigmoid(0.7))
    assert loss.total.item() == pytest.approx(expected, abs=1e-5)
    assert head_loss(HeadOutput(coarse=logits, refined=None, keyword=output.keyword), targets).refined is None

    none = torch.zeros(0, 6, 6, requires_grad=True)
    empty = FrameTargets(mask=torch.zeros(0, 6, 6), valid=torch.zeros(0, 6, 6))
    loss = head_loss(
        HeadOutput(coarse=none, refined=None, keyword=torch.zeros(0)),
        Targets(coarse=empty, refined=None, keyword=torch.zeros(0)),
    )
    loss.total.backward()
    assert loss.total.item() == 0


def test_refined_masks_without_targets_are_an_error() -> None:
    logits, target = random_targets()
    with pytest.raises(ValueError, match="refined"):
        head_loss(
            HeadOutput(coarse=logits, refined=logits, keyword=torch.zeros(0)),
            Targets(coarse=target, refined=None, keyword=torch.zeros(0)),
        )
