"""Tiles with a global view: the image is cut into tiles of the vision tower's input, the whole image comes after them.

InternVL, Aya Vision, Cohere 2 Vision, Idefics 3, SmolVLM, LFM2-VL. The tiles' cells are joined to one fine view of the
whole image.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from manifests.errors import ModelError
from stages.extract.grids.view import Cells, Shown, View, square_view

Size = tuple[int, int]  # (width, height), pixels


def views(shown: Shown) -> list[View]:
    """The whole image on a square grid, its aspect lost; and the fine view where the image was tiled."""
    rows, columns = shown.tiles
    count = len(shown.columns) // (rows * columns + 1) if rows * columns > 1 else len(shown.columns)
    coarse = square_view(shown.columns[-count:])
    if rows * columns <= 1:
        return [coarse]
    return [coarse, joined(shown.columns[:-count], (rows, columns), (coarse.height, coarse.width))]


def with_thumbnail(shown: Shown) -> list[View]:
    """LFM2-VL, which keeps the aspect. inputs: `spatial_shapes` int64 [images, 2], patches before pixel unshuffle."""
    shrink = shown.config.downsample_factor
    shapes = [(-(-int(height) // shrink), -(-int(width) // shrink)) for height, width in shown.inputs["spatial_shapes"]]
    height, width = shapes[-1]
    coarse = View(height=height, width=width, columns=shown.columns[-height * width :])
    if len(shapes) == 1:
        return [coarse]
    return [coarse, joined(shown.columns[: -height * width], shown.tiles, shapes[0])]


def joined(columns: Sequence[int], tiles: Cells, cells: Cells) -> View:
    """One view of tiles [rows, columns] of cells [h, w] each: tile by tile in the input ids, row by row in the view."""
    height, width = tiles[0] * cells[0], tiles[1] * cells[1]
    if len(columns) != height * width:
        raise ModelError(
            f"{len(columns)} image columns are not {tiles[0]} x {tiles[1]} tiles of {cells[0]} x {cells[1]} cells: "
            "this processor cuts in another way; give --views 1"
        )
    grid = np.asarray(columns).reshape(*tiles, *cells).swapaxes(1, 2)
    return View(height=height, width=width, columns=grid.ravel().tolist())


def canvas(processor: Any, size: Size) -> Cells:
    """InternVL, Aya Vision, Cohere 2 Vision: (rows, columns) of the tiles that `crop_to_patches` cuts an image into."""
    best: Any = vars(inspect.getmodule(type(processor)))["get_optimal_tiled_canvas"]
    tile = (processor.size["height"], processor.size["width"])
    columns, rows = best(size[::-1], tile, processor.min_patches, processor.max_patches)
    return rows, columns


def splits(processor: Any, size: Size) -> Cells:
    """Idefics 3, SmolVLM: (rows, columns) of `do_image_splitting`; (0, 0) for an image that is not split."""
    made = processor([[Image.new("RGB", size)]], do_image_splitting=True, return_row_col_info=True)
    return int(made["rows"][0][0]), int(made["cols"][0][0])


def layout(processor: Any, size: Size) -> Cells:
    """LFM2-VL: (rows, columns) of `do_image_splitting`; (1, 1) for an image that is not split."""
    made = processor([[Image.new("RGB", size)]], do_image_splitting=True, return_row_col_info=True)
    return int(made["image_rows"][0]), int(made["image_cols"][0])
