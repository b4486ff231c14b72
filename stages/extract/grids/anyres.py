"""LLaVA-NeXT and LLaVA-OneVision: a coarse square view of the whole image, then fine tiles joined to one view.

The fine view is unpadded to the image's aspect, and a newline column follows each of its rows.
"""

from __future__ import annotations

from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from manifests.errors import ModelError
from stages.extract.grids.view import Shown, View, square_view


def views(shown: Shown) -> list[View]:
    """The coarse view, and the fine one where the image was tiled."""
    columns, config = shown.columns, shown.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    coarse = square_view(columns[: side * side])
    rest = columns[side * side :]
    if len(rest) <= 1:  # one tile: only a newline follows
        return [coarse]
    width, height = shown.size
    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    rows, cells = _unpadded(height, width, tiles[0] * side, tiles[1] * side)
    if limit := getattr(config, "vision_aspect_ratio", "").removeprefix("anyres_max_"):
        ratio = (rows * cells / (int(limit) * side**2)) ** 0.5
        if ratio > 1.1:  # LLaVA-OneVision shrinks fine views of more than so many tiles
            rows, cells = int(rows // ratio), int(cells // ratio)
    if len(rest) != rows * (cells + 1):
        raise ModelError(f"{len(rest)} columns of the fine view for {rows} rows of {cells} cells and a newline")
    kept = [column for k, column in enumerate(rest) if (k + 1) % (cells + 1)]
    return [coarse, View(height=rows, width=cells, columns=kept)]


def _unpadded(height: int, width: int, rows: int, cells: int) -> tuple[int, int]:
    """The part of a canvas of rows x cells that shows an image of height x width pixels centred in it."""
    if width / height > cells / rows:
        return rows - 2 * ((rows - int(round(height * (cells / width), 7))) // 2), cells
    return rows, cells - 2 * ((cells - int(round(width * (rows / height), 7))) // 2)
