"""What every grid family gives: which columns of the LMM's input show the image, on which grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from manifests.errors import ModelError
from stages.extract.images import Box

Cells = tuple[int, int]  # (h, w) of a grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One image as the LMM's inputs show it.

    columns: positions of the image's tokens in the input ids.  size: (width, height) of the original image, pixels.
    inputs: what the family's image processor made of it, tensors with a leading dimension of 1 (image_grid_thw, …).
    config: the model's.  tiles: (rows, columns) of the tiles that the image was cut into, (1, 1) for one view.
    """

    columns: Sequence[int]
    size: tuple[int, int]
    inputs: Mapping[str, Any]
    config: Any
    tiles: Cells = (1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The whole image on a grid of `height` x `width` cells.

    columns: positions in the input ids, row-major, one for every cell.  box: the part of the grid that shows the image,
    in pixels of a square that the grid covers; None: all of it (families that stretch the image, or follow its shape).
    """

    height: int
    width: int
    columns: Sequence[int]
    box: Box | None = None

    def __post_init__(self) -> None:
        if len(self.columns) != self.height * self.width:
            raise ModelError(f"{len(self.columns)} image columns for a grid of {self.height} x {self.width} cells")


def square_view(columns: Sequence[int], box: Box | None = None) -> View:
    """A square grid, whose side is the root of the number of columns; ModelError where it has none."""
    side = isqrt(len(columns))
    return View(height=side, width=side, columns=columns, box=box)
