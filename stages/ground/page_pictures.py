"""The page's pictures as data: addresses: the photo, a phrase's layers over it, a word's attention, the download.

Every function is pure. Frames: layers have the size of the photo as it is shown; attention has a pixel for each cell of
the LMM's grid, and is stretched over the photo by the browser.
"""

from __future__ import annotations

import base64
import io
from typing import Final

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch.nn.functional import adaptive_avg_pool2d

from stages.analyze.pictures import cluster_cells
from stages.evaluate.conversations import COLOURS
from stages.ground.overlay import draw_overlay
from stages.ground.results import Grounding

SIDE: Final = 640
"""Longer side of the photo as it is shown, pixels."""
SAVED_SIDE: Final = 1280
"""Longer side of the PNG that is downloaded, pixels."""
VEIL: Final = (10, 12, 18)
CLUSTERED_SIDE: Final = 24
"""Cells along a side of what is clustered, at most: 1,024 maps of 64×64 take 13 s with all cells, 0.3 s with these."""
_VEILED, _TINT = 0.74, 0.38


def colour_of(number: int) -> str:
    """The colour of phrase `number`, as CSS."""
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[number % len(COLOURS)])


def photo(image: Image.Image) -> str:
    """The address of an image as it is shown: small ones are enlarged, so that outlines on them are smooth."""
    return _address(image.resize(shown_size(image), Image.Resampling.LANCZOS), "JPEG", quality=90)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height with the longer side at `SIDE`."""
    scale = SIDE / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def layers(mask: np.ndarray, number: int, size: tuple[int, int]) -> tuple[str, str]:
    """Two addresses of PNGs with transparency, for a phrase alone: its mask tinted, and all else veiled.

    mask: bool [height, width].  number: of the phrase: its colour.  size: (width, height) of the layers. Both have the
    mask's outline. A mask without pixels has neither.
    """
    colour = COLOURS[number % len(COLOURS)]
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = grey.point([min(255, max(0, 4 * value - 382)) for value in range(256)])  # a soft edge of a pixel or so
    edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(5)), inside.filter(ImageFilter.MinFilter(3)))
    tinted = Image.new("RGBA", size, colour)
    tinted.putalpha(ImageChops.lighter(edge, inside.point(lambda value: _TINT * value)))
    line, veiled = Image.new("RGBA", size, colour), Image.new("RGBA", size, VEIL)
    line.putalpha(edge)
    veiled.putalpha(inside.point(lambda value: _VEILED * (255 - value)))
    return _address(tinted), _address(Image.alpha_composite(veiled, line))


def heat(values: np.ndarray) -> str:
    """The address of a map, float [h, w], from 0 to its own maximum in inferno's colours."""
    share = np.clip(values / max(float(values.max()), 1e-12), 0, 1)
    return _address(Image.fromarray((255 * matplotlib.colormaps["inferno"](share)[..., :3]).astype(np.uint8)))


def clusters(maps: np.ndarray, k: int) -> str:
    """The address of the cells' clusters: cells that are alike over all maps, float [C, h, w], have one colour.

    From dark blue, which has the least attention, to yellow. More cells than `CLUSTERED_SIDE` are averaged first.
    """
    height, width = (min(side, CLUSTERED_SIDE) for side in maps.shape[1:])
    if maps.shape[1:] != (height, width):
        maps = adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps)), (height, width)).numpy()
    cells = cluster_cells(maps, k, seed=0)
    share = cells / max(1, int(cells.max()))
    return _address(Image.fromarray((255 * matplotlib.colormaps["viridis"](share)[..., :3]).astype(np.uint8)))


def overlay_png(grounding: Grounding, refined: bool) -> bytes:
    """What is downloaded: the image with all masks, and their legend, as a PNG."""
    return _bytes(draw_overlay(grounding if refined else grounding.unrefined(), SAVED_SIDE), "PNG")


def address_of(content: bytes, kind: str) -> str:
    """A data: address. kind: the MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _address(picture: Image.Image, kind: str = "PNG", **options: int) -> str:
    return address_of(_bytes(picture, kind, **options), f"image/{kind.lower()}")


def _bytes(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
