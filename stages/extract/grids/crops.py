"""Molmo 2: a low-resolution view of the whole image, then overlapping crops that make one high-resolution view."""

from __future__ import annotations

from stages.extract.grids.view import Shown, View


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
