"""Molmo 2: a low-resolution view of the whole image, then overlapping crops that make one high-resolution view."""

from __future__ import annotations

from typing import Any

from stages.extract.grids.view import Cells, Shown, View


def views(shown: Shown) -> list[View]:
    """Coarse, then fine. inputs: `image_grids` int64 [1, 4], pooled (rows, columns) of the low and the high view.

    The tokens that end rows are no image columns.
    """
    low_rows, low_columns, rows, width = (int(n) for n in shown.inputs["image_grids"][0])
    split = low_rows * low_columns
    return [
        View(height=low_rows, width=low_columns, columns=shown.columns[:split]),
        View(height=rows, width=width, columns=shown.columns[split:]),
    ]


def cells(config: Any) -> Cells:
    """(h, w) of every image's low-resolution view: its patches pooled 2 x 2, an odd last one with padding."""
    height, width = config.vision_config.image_size
    cell = 2 * config.vision_config.patch_size
    return -(-height // cell), -(-width // cell)
