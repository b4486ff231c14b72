"""The arrays of a batch as the cache keeps them: attention maps on the stored grid, everything scaled for float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.extract.capture import Captured
from stages.extract.grids import View
from stages.extract.scaling import scale_maps, scale_states

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


def on_grid(maps: Tensor, view: View, grid: Grid, shown: Grid) -> Tensor:
    """Maps [..., h * w] of a view -> float32 [..., *grid]: bilinear (align_corners False), zeros beside the image.

    A view with more cells than the grid is averaged while it shrinks (antialias): no cell's attention is lost.
    shown: the part of the grid that the image covers (`shown_cells` of its finest view).
    """
    maps = maps.unflatten(-1, (view.height, view.width)).float()
    if maps.shape[-2:] == grid:
        return maps
    flat = maps.flatten(0, -3)[:, None]
    shrinks = view.height > shown[0] or view.width > shown[1]
    resized = F.interpolate(flat, size=shown, mode="bilinear", align_corners=False, antialias=shrinks)[:, 0]
    return F.pad(resized, (0, grid[1] - shown[1], 0, grid[0] - shown[0])).unflatten(0, maps.shape[:-2])


def stored_maps(attention: Tensor, views: Sequence[View], grid: Grid) -> tuple[Tensor, Tensor]:
    """One object's maps [A, N, P], P columns of all its views -> (float16 [C, *grid], mass float32 [C]).

    C: view by view, layer-major inside a view (layer 0's heads first). Each map is scaled to mean 1; its mass is its
    sum over the view's columns, which resizing does not keep.
    """
    shown = shown_cells(views[-1], grid)
    parts = attention.flatten(0, 1).split([v.height * v.width for v in views], -1)
    scaled, mass = scale_maps(torch.cat([on_grid(part, v, grid, shown) for part, v in zip(parts, views, strict=True)]))
    if any((v.height, v.width) != grid for v in views):
        mass = torch.cat([part.double().sum(-1) for part in parts]).float()
    return scaled, mass


def to_host(values: Tensor) -> Tensor:
    """The values in the host's memory; from a GPU when its stream has come that far: synchronise before reading."""
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def stored_fields(captured: Captured, views: Sequence[Sequence[View]], grid: Grid) -> dict[str, Tensor]:
    """What `PRIORS` arrays hold of a batch, made on the device that ran it; `views`: of each object.

    attention float16 [K, C, *grid] and attention_mass float32 [K, C], see `stored_maps`; hidden float16 [T, M, d] with
    hidden_scale float32 [T, M]; answer_hidden float16 [A, d] with answer_scale float32 [A].
    """
    maps = [
        stored_maps(captured.attention[k, ..., : sum(len(v.columns) for v in seen)], seen, grid)
        for k, seen in enumerate(views)
    ]
    hidden, hidden_scale = scale_states(captured.hidden)
    answer, answer_scale = scale_states(captured.answer_hidden)
    return {
        "attention": torch.stack([scaled for scaled, _ in maps]),
        "attention_mass": torch.stack([mass for _, mass in maps]),
        "hidden": hidden,
        "hidden_scale": hidden_scale,
        "answer_hidden": answer,
        "answer_scale": answer_scale,
    }
