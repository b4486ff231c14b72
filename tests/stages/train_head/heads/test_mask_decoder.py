"""The U-Net against a second one written from the paper's formulas: one object at a time, no modules, own bilinear."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stages.train_head.heads.mask_decoder import UNetMaskDecoder

Weights = dict[str, torch.Tensor]


def bilinear(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[C, h, w] -> [C, height, width], align_corners=False, by its definition."""

    def corners(source: int, target: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = ((torch.arange(target, dtype=image.dtype) + 0.5) * source / target - 0.5).clamp(0, source - 1)
        low = at.floor().long()
        return low, (low + 1).clamp(max=source - 1), at - low

    top, bottom, down = corners(image.shape[1], height)
    left, right, across = corners(image.shape[2], width)
    rows = image[:, top] * (1 - down)[:, None] + image[:, bottom] * down[:, None]
    return rows[:, :, left] * (1 - across) + rows[:, :, right] * across


def block(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    kernel = weights[f"{name}.conv.weight"]
    x = F.conv2d(x[None], kernel, padding=(kernel.shape[-1] - 1) // 2)[0]
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    x = x * weights[f"{name}.gn.weight"][:, None, None] + weights[f"{name}.gn.bias"][:, None, None]
    return x.clamp(min=0)


def double(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return block(block(x, weights, f"{name}.0"), weights, f"{name}.1")


def reference(maps: torch.Tensor, weights: Weights, size: int) -> torch.Tensor:
    """One object's [C, h, w] -> logits."""
    maps = torch.stack([m / max(m.sum().item(), 1e-12) for m in maps])
    scale = max(1.0, size / max(maps.shape[1:]))
    height, width = math.floor(maps.shape[1] * scale + 1e-9), math.floor(maps.shape[2] * scale + 1e-9)
    maps = bilinear(maps, height, width)
    canvas = maps.new_zeros(len(maps), (height + 7) // 8 * 8, (width + 7) // 8 * 8)
    canvas[:, :height, :width] = maps
    x0 = double(canvas, weights, "encoder.0.0.convs")
    levels = [x0]
    for level in (1, 2, 3):
        c, h, w = levels[-1].shape
        pooled = levels[-1].reshape(c, h // 2, 2, w // 2, 2).amax((2, 4))
        levels.append(double(pooled, weights, f"encoder.{level}.1.convs"))
    x = levels[3]
    for level in (2, 1, 0):
        x = bilinear(x, 2 * x.shape[1], 2 * x.shape[2])
        x = block(x, weights, f"decoder.{level}.upsample.interp_upsample.1")
        x = double(torch.cat([levels[level], x]), weights, f"decoder.{level}.conv_block.convs")
    logits = (x * weights["conv_seg.weight"].reshape(-1, 1, 1)).sum(0) + weights["conv_seg.bias"]
    return logits[:height, :width]


@pytest.mark.parametrize(
    ("grid", "size", "shape"),
    [((6, 6), 16, (16, 16)), ((5, 9), 32, (17, 32)), ((9, 4), 24, (24, 10)), ((20, 24), 16, (20, 24))],
    ids=["square", "wide", "tall", "finer than input_size"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_equals_the_plain_reference_with_gradients(
    grid: tuple[int, int], size: int, shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    decoder = UNetMaskDecoder(5, input_size=size, base_width=4)
    for name, parameter in decoder.named_parameters():
        if ".gn." in name:  # away from 1 and 0, else a swapped or missing affine part would not show
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.2, std=0.3)
    decoder.to(dtype)
    attention = (torch.rand(3, 5, *grid) ** 3 * torch.tensor([1.0, 50.0, 1e-3])[:, None, None, None]).to(dtype)
    direction = torch.randn(3, *shape, dtype=dtype)

    logits = decoder(attention)
    gradients = torch.autograd.grad((logits * direction).sum(), list(decoder.parameters()))

    weights = {name: p.detach().clone().requires_grad_() for name, p in decoder.named_parameters()}
    expected = torch.stack([reference(maps, weights, size) for maps in attention])
    expected_gradients = torch.autograd.grad((expected * direction).sum(), list(weights.values()))

    assert logits.shape == (3, *shape)
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    for name, actual, wanted in zip(weights, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            actual, wanted, atol=tolerance * max(1.0, wanted.abs().max().item()), rtol=0, msg=name
        )


def test_the_scale_of_a_map_does_not_matter_and_empty_maps_are_allowed() -> None:
    torch.manual_seed(0)
    decoder = UNetMaskDecoder(3, input_size=16, base_width=4)
    attention = torch.rand(2, 3, 6, 6)
    scaled = attention * torch.tensor([1.0, 30.0, 1e-4])[:, None, None]
    torch.testing.assert_close(decoder(attention), decoder(scaled), atol=1e-5, rtol=0)
    attention[0, 1] = 0
    assert decoder(attention).isfinite().all()
    assert decoder(attention.half()).dtype == torch.float32
    assert decoder(attention[:0]).shape == (0, 16, 16)


def test_parameters_have_the_published_names_and_number() -> None:
    with torch.device("meta"):
        decoder = UNetMaskDecoder(32)
    blocks = [
        f"encoder.{0 if level == 0 else level}.{0 if level == 0 else 1}.convs.{i}" for level in range(4) for i in (0, 1)
    ]
    blocks += [f"decoder.{step}.conv_block.convs.{i}" for step in range(3) for i in (0, 1)]
    blocks += [f"decoder.{step}.upsample.interp_upsample.1" for step in range(3)]
    names = {f"{b}.{leaf}" for b in blocks for leaf in ("conv.weight", "gn.weight", "gn.bias")}
    parameters = dict(decoder.named_parameters())
    assert parameters.keys() == names | {"conv_seg.weight", "conv_seg.bias"}
    assert parameters["decoder.0.upsample.interp_upsample.1.conv.weight"].shape == (64, 128, 1, 1)  # finest first
    assert parameters["decoder.2.conv_block.convs.0.conv.weight"].shape == (256, 512, 3, 3)
    assert round(sum(p.numel() for p in parameters.values()) / 1e6, 2) == 7.20
