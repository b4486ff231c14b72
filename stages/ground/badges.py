"""Numbers for the masks of a picture, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from stages.evaluate.pictures import PAPER, Colour, font

BADGE: Final = 26
"""Height of a number's disc, pixels; as wide as its digits need."""
_GRID: Final = 180  # places are looked for on masks of so many pixels at their longer side


@cache
def badge(number: int, colour: Colour, *, edge: bool = False, hollow: bool = False, small: bool = False) -> Image.Image:
    """RGBA: a number on a disc of a colour.

    edge: with a white ring, to be put on a picture.  hollow: of a phrase that has no mask.  small: for a line of text.
    """
    height, size = (20, 13) if small else (BADGE, 15)
    width = max(height, int(font(size, bold=True).getlength(str(number))) + (8 if small else 12))
    ring, scale = 3 if edge else 0, 4  # drawn larger, so that it is smooth
    canvas = Image.new("RGBA", (scale * (width + 2 * ring), scale * (height + 2 * ring)), (*PAPER, 0))
    draw, box = ImageDraw.Draw(canvas), (0, 0, canvas.width - 1, canvas.height - 1)
    if ring:
        draw.rounded_rectangle(box, canvas.height / 2, PAPER)
    inner = (box[0] + scale * ring, box[1] + scale * ring, box[2] - scale * ring, box[3] - scale * ring)
    fill = PAPER if hollow else colour
    draw.rounded_rectangle(inner, scale * height / 2, fill, outline=colour, width=2 * scale)
    ink = colour if hollow else PAPER
    draw.text((canvas.width / 2, canvas.height / 2), str(number), ink, font(scale * size, bold=True), anchor="mm")
    return canvas.resize((width + 2 * ring, height + 2 * ring), Image.Resampling.LANCZOS)


def places(masks: Mapping[int, np.ndarray], size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Where the number of each mask goes, (x, y) in a picture of `size` (width, height).

    masks: bool [height, width] with a pixel or more, all of one size. The place is the pixel farthest from the edge of
    what of a mask can be seen under the smaller ones, clear of the other numbers if there is such a pixel; that of a
    mask which the number would hide is above it.
    """
    scale = max(size) / min(_GRID, max(size))
    cells = (max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
    order = sorted(masks, key=lambda number: int(masks[number].sum()))
    covered = np.zeros(cells[::-1], bool)
    taken: list[tuple[int, int]] = []
    found: dict[int, tuple[int, int]] = {}
    for number in order:  # small ones first: they have the least choice
        mask = _on_cells(masks[number], cells)
        row, column = _place(mask, mask & ~covered, taken, (BADGE + 6) / scale)
        covered |= mask
        if depth(mask).max() * scale < BADGE / 2:
            gap = np.flatnonzero(~mask[:row, column])
            row = (int(gap[-1]) + 1 if gap.size else 0) - round(BADGE / 2 / scale)
        x, y = (
            round((place + 0.5) * side / count) for place, side, count in zip((column, row), size, cells, strict=True)
        )
        half = BADGE // 2 + 3
        found[number] = (_within(x, half, size[0]), _within(y, half, size[1]))
        taken.append((row, column))
    return dict(sorted(found.items()))


def _within(value: int, margin: int, size: int) -> int:
    return min(max(value, margin), size - margin) if size > 2 * margin else size // 2


def _place(mask: np.ndarray, seen: np.ndarray, taken: list[tuple[int, int]], apart: float) -> tuple[int, int]:
    """(row, column) of a cell of the mask: of those seen and clear, else clear, else seen, else any the deepest."""
    rows, columns = np.indices(mask.shape)
    clear = np.ones(mask.shape, bool)
    for row, column in taken:
        clear &= np.hypot(rows - row, columns - column) >= apart
    # a sliver that is left of a covered mask is no place for its number
    options = (
        depth(area) * clear if free else depth(area) for area, free in ((seen, True), (mask, True), (seen, False))
    )
    values = next((found for found in options if found.max() > 1), depth(mask))
    best = np.argwhere(values == values.max())
    nearest = np.square(best - best.mean(0)).sum(1).argmin()
    return int(best[nearest][0]), int(best[nearest][1])


def depth(mask: np.ndarray) -> np.ndarray:
    """int [height, width]: how many times the mask can be eroded (by one pixel to all sides) until a pixel is gone."""
    found, left = mask.astype(np.int64), np.pad(mask, 1)
    while True:
        rows = left[:-2] & left[1:-1] & left[2:]
        left = np.pad(rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:], 1)
        if not left.any():
            return found
        found += left[1:-1, 1:-1]


def _on_cells(mask: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """bool: the mask at (width, height) cells, never without one."""
    share = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(cells, Image.Resampling.BOX))
    return share >= max(1, min(128, int(share.max())))
