"""Moving between squares: against a plain loop over pixels from the definition of bilinear reading."""

from __future__ import annotations

import math

import pytest
import torch

from stages.extract.images import Box, centred_box, corner_box
from stages.train_head.heads.frames import image_part, move, positions

SIZES = [(64, 40), (50, 70), (33, 33)]  # (width, height)
LMM = [centred_box(*size, 48) for size in SIZES]
SAM = [corner_box(*size, 128) for size in SIZES]


def read(plane: torch.Tensor, y: float, x: float) -> float:
    """The plane at (y, x) in pixels, pixel centres at .5, bilinear, the outermost pixels repeated."""
    side = plane.shape[-1]
    v, u = (min(max(at - 0.5, 0), side - 1) for at in (y, x))
    y0, x0 = math.floor(v), math.floor(u)
    y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
    upper = plane[y0, x0] * (1 - (u - x0)) + plane[y0, x1] * (u - x0)
    lower = plane[y1, x0] * (1 - (u - x0)) + plane[y1, x1] * (u - x0)
    return float(upper * (1 - (v - y0)) + lower * (v - y0))


@pytest.mark.parametrize(("source", "target"), [(LMM, SAM), (SAM, LMM)], ids=["to SAM", "to the LMM"])
@pytest.mark.parametrize(("side", "size"), [(6, 9), (12, 8)])
def test_move_pixel_by_pixel(source: list[Box], target: list[Box], side: int, size: int) -> None:
    features = torch.randn(4, 2, side, side, generator=torch.Generator().manual_seed(0))
    sample = [2, 0, 1, 0]
    moved = move(features, torch.tensor(sample), source, target, size)
    assert moved.shape == (4, 2, size, size)
    for k, s in enumerate(sample):
        a, b = source[s], target[s]
        for i in range(size):
            for j in range(size):
                y = ((i + 0.5) / size * b.size - b.top) / b.height  # shares of the image
                x = ((j + 0.5) / size * b.size - b.left) / b.width
                for d in range(2):
                    expected = 0.0
                    if 0 <= y <= 1 and 0 <= x <= 1:
                        at = [(a.top + y * a.height) / a.size * side, (a.left + x * a.width) / a.size * side]
                        expected = read(features[k, d], *at)
                    assert float(moved[k, d, i, j]) == pytest.approx(expected, abs=1e-5)


def test_positions_and_image_part() -> None:
    place = positions(LMM, 48)
    assert place.shape == (3, 3, 48, 48)
    assert torch.equal(place[:, 2].bool(), image_part(LMM, 48))
    y, x, inside = place[0]  # 64x40 in a square of 48: rows 9 to 38 show the image
    assert (y[9, 0], y[38, 0], x[9, 0], x[9, 47]) == pytest.approx((-29 / 30, 29 / 30, -47 / 48, 47 / 48))
    assert not y[:9].any() and not x[39:].any() and inside.sum() == 30 * 48


def test_no_objects() -> None:
    assert move(torch.zeros(0, 2, 6, 6), torch.zeros(0, dtype=torch.int64), LMM, SAM, 8).shape == (0, 2, 8, 8)
