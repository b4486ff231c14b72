"""One square view of a fixed input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stages.extract.grids.view import Cells, Shown, View, square_view
from stages.extract.images import Box, centred_box


def stretched(shown: Shown) -> list[View]:
    """The image fills the square, its aspect is lost: Gemma 3, PaliGemma."""
    return [square_view(shown.columns)]


def padded(shown: Shown) -> list[View]:
    """Longest side -> the square's side (rounded down), centred: LLaVA as F-LMM prepares it."""
    return [square_view(shown.columns, centred_box(*shown.size, shown.config.vision_config.image_size))]


def padded_rounding(shown: Shown) -> list[View]:
    """The same, with the shorter side rounded to the nearest pixel: DeepSeek-VL, Janus."""
    side = shown.config.vision_config.image_size
    width, height = (max(1, round(n * side / max(shown.size))) for n in shown.size)
    box = Box(top=(side - height) // 2, left=(side - width) // 2, height=height, width=width, size=side)
    return [square_view(shown.columns, box)]


def padded_corner(shown: Shown) -> list[View]:
    """LLaVA's size, in the top left corner: Llama 4's tile where one is all it may use."""
    box = centred_box(*shown.size, shown.config.vision_config.image_size)
    return [square_view(shown.columns, replace(box, top=0, left=0))]


def cells(shrink: Callable[[Any], int] = lambda config: 1) -> Callable[[Any], Cells]:
    """(h, w) of every image's grid: patches of the vision tower's input, `shrink(config)` of them merged a side."""

    def of(config: Any) -> Cells:
        sizes = (config.vision_config.image_size, config.vision_config.patch_size)
        image, patch = (size if isinstance(size, int) else size[0] for size in sizes)
        side = image // patch // shrink(config)
        return side, side

    return of
