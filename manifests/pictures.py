"""Picture files and the limits on their size, looked at before a pixel is decoded: files may come from anyone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from PIL import Image

MAX_PIXELS: Final = 1 << 27
"""A picture of more pixels is refused (134 million: more than cameras have); no mask of such a size is ever made."""
MAX_SIDE: Final = 1 << 16
"""Pixels of the longest side: as much as a JPEG can have."""
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may take a file for; none of these runs a program, as EPS does."""


class BrokenPicture(ValueError):
    """A picture that can not be used; the message goes on after the file's name: "is missing"."""


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of which the header was read; its pixels are decoded by the caller, inside `with`.

    Raises BrokenPicture where it is missing, no picture, or larger than the limits (a decompression bomb).
    """
    try:
        with open_header(path) as image:
            if fault := size_fault(image.height, image.width):
                raise BrokenPicture(fault)
            yield image
    except FileNotFoundError:
        raise BrokenPicture("is missing") from None
    except Image.DecompressionBombError:
        raise BrokenPicture(f"has more than the {MAX_PIXELS} pixels that are allowed") from None
    except (BrokenPicture, MemoryError):
        raise
    except Exception:  # Pillow's parsers of a broken file raise whatever they stumble over, with its whole path
        raise BrokenPicture("can not be decoded") from None


def open_header(file: Path | BinaryIO) -> Image.Image:
    """The picture, its pixels not read yet, without Pillow's warning of sizes that `MAX_PIXELS` allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=FORMATS)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels as stored, from the file's header; a camera's rotation flag is not applied.

    Raises BrokenPicture with the file's name, the fault and the cure where it is missing, no picture, or too large. No
    absolute path is named: a manifest is the same on every machine.
    """
    try:
        with opened_picture(path) as image:
            return image.height, image.width
    except BrokenPicture as fault:
        cures = {"is missing": "put it there", "can not be decoded": "download it again"}
        cure = cures.get(str(fault), "replace it")
        raise BrokenPicture(f"{path.name} {fault}: {cure}") from None


def size_fault(height: Any, width: Any) -> str | None:
    """What is wrong with a picture of this size, after "it"; None if it can be used."""
    if type(height) is not int or type(width) is not int:
        return "has a size that is no whole number"
    if min(height, width) < 1:
        return f"is {height}x{width} pixels (height x width)"
    if height * width > MAX_PIXELS:
        return f"is {height}x{width} pixels, more than the {MAX_PIXELS} that are allowed"
    if max(height, width) > MAX_SIDE:
        return f"is {height}x{width} pixels (height x width), {MAX_SIDE} are allowed along a side"
    return None
