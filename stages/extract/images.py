"""From an image file to what the LMM's and SAM's vision towers see, and back: which part of the square is the image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from manifests.errors import DatasetError
from manifests.pictures import open_header


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle inside a square of side `size`, all in pixels of that square: the part that shows the image."""

    top: int
    left: int
    height: int
    width: int
    size: int

    def as_tuple(self) -> tuple[int, int, int, int, int]:
        """(top, left, height, width, size): how the cache keeps it."""
        return self.top, self.left, self.height, self.width, self.size

    def scaled(self, size: int) -> Box:
        """The same part of a square of side `size`: outer edges floor(edge · ratio), inner floor(edge · ratio + 0.5).

        This is the crop of F-LMM: `int(before * pred / padded)` … `int(extent * pred / padded + 0.5)`, in integers.
        """
        top, left = (edge * size // self.size for edge in (self.top, self.left))
        height, width = ((2 * extent * size + self.size) // (2 * self.size) for extent in (self.height, self.width))
        return Box(
            top=top, left=left, height=max(1, min(height, size - top)), width=max(1, min(width, size - left)), size=size
        )


def centred_box(width: int, height: int, size: int) -> Box:
    """Where `pad_to_square` puts an image of `width` x `height` pixels: longest side -> `size`, centred."""
    if width >= height:
        new_width, new_height = size, max(1, int(height * size / width))
    else:
        new_width, new_height = max(1, int(width * size / height)), size
    return Box(
        top=(size - new_height) // 2, left=(size - new_width) // 2, height=new_height, width=new_width, size=size
    )


def corner_box(width: int, height: int, size: int) -> Box:
    """Where `pad_bottom_right` puts an image of `width` x `height` pixels: longest side -> `size`, top left corner."""
    scale = size / max(width, height)
    new_width, new_height = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    return Box(top=0, left=0, height=new_height, width=new_width, size=size)


def pad_to_square(image: Image.Image, size: int, mean: tuple[float, ...]) -> tuple[np.ndarray, Box]:
    """LLaVA's input as F-LMM makes it: longest side -> `size` (bicubic), then centred padding with the mean colour.

    Returns uint8 [size, size, 3] and the box of the image in it. `mean`: RGB in [0, 1].
    """
    box = centred_box(*image.size, size)
    square = np.empty((size, size, 3), np.uint8)
    square[:] = [int(channel * 255) for channel in mean]
    resized = image.resize((box.width, box.height), Image.Resampling.BICUBIC)
    square[box.top : box.top + box.height, box.left : box.left + box.width] = np.asarray(resized)
    return square, box


def pad_bottom_right(image: Image.Image, size: int) -> tuple[np.ndarray, Box]:
    """SAM's input before normalisation: longest side -> `size` (bilinear), image in the top left corner.

    Returns uint8 [height, width, 3] (unpadded: SAM pads after normalising) and its box in the square.
    """
    box = corner_box(*image.size, size)
    return np.array(image.resize((box.width, box.height), Image.Resampling.BILINEAR)), box


def open_image(path: Path | BinaryIO, expected: tuple[int, int], name: str | None = None) -> Image.Image:
    """The RGB image of a file, `expected` (width, height) pixels as the manifest says.

    name: what messages call the file; default: its path. Raises DatasetError with what is wrong and the cure: file
    missing, not an image, truncated, or of another size.
    """
    name = name or str(path)
    try:
        with open_header(path) as image:
            if image.size != expected:
                raise DatasetError(
                    f"{name} is {image.size[0]}x{image.size[1]} pixels, its annotations are for "
                    f"{expected[0]}x{expected[1]}: use the image that the annotations were made on"
                )
            return image.convert("RGB")
    except FileNotFoundError:
        raise DatasetError(f"{name} is missing: put the image there, or build the manifest without it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DatasetError):
            raise
        # the texts of these two hold the path as it was opened
        reason = "no image" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        raise DatasetError(f"{name} can not be decoded ({reason}): replace the file") from None
