"""The arrays of a batch as the cache keeps them: attention maps on the stored grid, everything scaled for float16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.scaling import scale_maps, scale_states
from stages.extract.attention import Captured
from stages.extract.grids import View

Grid = tuple[int, int]


def shown_cells(view: View, grid: Grid) -> Grid:
    """(h, w): the part of the stored grid, from its top left corner, that a view covers.

    All of it where the view has the stored shape or is as square as it; else its longer side fills the grid (F-LMM).
    """
    if view.height * grid[1] == view.width * grid[0]:
        return grid
    longest = max(view.height, view.width)
    return max(1, round(view.height * grid[0] / longest)), max(1, round(view.width * grid[1] / longest))


def stored_box(view: View, grid: Grid) -> tuple[int, int, int, int, int]:
    """(top, left, height, width, size): where in a square of side `size` that the stored grid covers the image lies."""
    if view.box is not None:
        return view.box.as_tuple()
    height, width = shown_cells(view, grid)
    return 0, 0, height, width, max(grid)


def on_grid(maps: Tensor, view: View, grid: Grid) -> Tensor:
    """Maps [..., h * w] of a view -> float32 [..., *grid]: bilinear (align_corners False), zeros beside the image."""
    maps = maps.unflatten(-1, (view.height, view.width)).float()
    if maps.shape[-2:] == grid:
        return maps
    height, width = shown_cells(view, grid)
    flat = maps.flatten(0, -3)[:, None]
    resized = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return F.pad(resized, (0, grid[1] - width, 0, grid[0] - height)).unflatten(0, maps.shape[:-2])


def stored_fields(captured: Captured, views: Sequence[View], grid: Grid) -> dict[str, np.ndarray]:
    """What `PRIORS` arrays hold of a batch; `views`: one per object.

    attention float16 [K, C, *grid], C layer-major (layer 0's heads first), each map scaled to mean 1; attention_mass
    float32 [K, C], its sum over the image's columns; hidden float16 [T, M, d] with hidden_scale float32 [T, M];
    answer_hidden float16 [A, d] with answer_scale float32 [A].
    """
    attention = captured.attention.flatten(1, 2)
    maps = [on_grid(attention[k, :, : v.height * v.width], v, grid) for k, v in enumerate(views)]
    scaled, mass = scale_maps(torch.stack(maps).cpu().numpy())
    if any((v.height, v.width) != grid for v in views):  # resizing does not keep sums
        mass = attention.double().sum(-1).float().cpu().numpy()
    hidden, hidden_scale = scale_states(captured.hidden.float().cpu().numpy())
    answer, answer_scale = scale_states(captured.answer_hidden.float().cpu().numpy())
    return {
        "attention": scaled,
        "attention_mass": mass,
        "hidden": hidden,
        "hidden_scale": hidden_scale,
        "answer_hidden": answer,
        "answer_scale": answer_scale,
    }
