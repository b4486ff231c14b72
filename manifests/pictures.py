"""The size of a picture and the limits on it, without decoding it: files may come from anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image

MAX_PIXELS: Final = 1 << 26
"""A picture of more pixels is refused: 8192 x 8192, several times what any dataset here holds."""


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels as stored, from the file's header; a camera's rotation flag is not applied.

    Raises ValueError with the file's name, the fault and the cure where it is missing, no picture, or larger than
    `MAX_PIXELS` (a decompression bomb). No absolute path is named: a manifest is the same on every machine.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing: put it there") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path.name} has more than the {MAX_PIXELS} pixels that are allowed: replace it") from None
    except Exception:  # Pillow's parsers of a broken file raise whatever they stumble over
        raise ValueError(f"{path.name} can not be decoded: download it again") from None
    if fault := size_fault(height, width):
        raise ValueError(f"{path.name} {fault}: replace it")
    return height, width


def size_fault(height: int, width: int) -> str | None:
    """What is wrong with a picture of this size, after "it"; None if it can be used."""
    if min(height, width) < 1:
        return f"is {height}x{width} pixels (height x width)"
    if height * width > MAX_PIXELS:
        return f"is {height}x{width} pixels, more than the {MAX_PIXELS} that are allowed"
    return None
