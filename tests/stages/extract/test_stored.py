"""Maps on the stored grid: interpolated where it is finer, averaged where it is coarser, nothing lost."""

from __future__ import annotations

import pytest
import torch

from stages.extract.grids import View
from stages.extract.stored import on_grid, shown_cells, stored_box, stored_maps


def view(height: int, width: int) -> View:
    return View(height=height, width=width, columns=range(height * width))


@pytest.mark.parametrize("cells", [(192, 16), (81, 81), (64, 128), (100, 37)])
def test_a_view_with_more_cells_than_the_grid_keeps_every_cells_attention(cells: tuple[int, int]) -> None:
    """Every cell of the view has its share in the map: a single peak anywhere leaves about its area."""
    fine = view(*cells)
    shown = shown_cells(fine, (64, 64))
    area = shown[0] * shown[1] / (cells[0] * cells[1])
    for at in range(0, cells[0] * cells[1], 997):
        peak = torch.zeros(1, cells[0] * cells[1])
        peak[0, at] = 1
        assert on_grid(peak, fine, (64, 64), shown).sum() == pytest.approx(area, rel=0.75)


def test_both_views_lie_on_the_part_of_the_grid_that_the_fine_one_has() -> None:
    coarse, fine = view(4, 4), view(6, 12)
    attention = torch.rand(2, 3, 16 + 72)
    scaled, mass = stored_maps(attention, [coarse, fine], (64, 64))
    assert scaled.shape == (2 * 2 * 3, 64, 64) and stored_box(fine, (64, 64)) == (0, 0, 32, 64, 64)
    assert not scaled[:, 32:].any()
    torch.testing.assert_close(mass[:6], attention[..., :16].flatten(0, 1).sum(-1))  # all coarse maps first
    torch.testing.assert_close(mass[6:], attention[..., 16:].flatten(0, 1).sum(-1))
    left = torch.zeros(1, 1, 16 + 72)
    left[..., [0, 4, 8, 12]] = 1  # the coarse view's first column
    left[..., 16::12] = 1  # the fine view's
    for one in stored_maps(left, [coarse, fine], (64, 64))[0].float():
        assert one[:32, :4].mean() > 1 and not one[:, 32:].any()
