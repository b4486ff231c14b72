"""Pictures from anyone: files and folders to upright RGB images, with a limit on what is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from manifests.errors import DatasetError
from manifests.pictures import BrokenPicture, opened_picture, size_fault

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"
"""A file, a PIL image, or uint8 [height, width, 3] RGB."""
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""What of a folder is taken for a picture."""


def open_photo(image: ImageLike) -> Image.Image:
    """The image in RGB, upright: a camera's rotation flag is applied, so all masks are in the frame that a viewer sees.

    What is transparent becomes white. Of an animation the first picture. Raises DatasetError, in one line with the
    cure: missing, no picture, truncated, or of more pixels than `manifests.pictures` allows (looked at before any is
    decoded), an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DatasetError(
                f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}: convert it"
            )
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        if fault := size_fault(image.height, image.width):
            raise DatasetError(f"the image {fault}: give another one")
        try:
            return _upright(image)
        except BrokenPicture as fault:
            raise DatasetError(f"the image {fault}: convert it to RGB") from None
    path = Path(image)
    if path.is_dir() or (path.is_file() and not path.stat().st_size):
        raise DatasetError(f"{path} is {'a folder' if path.is_dir() else 'empty'}: give an image file")
    try:
        with opened_picture(path) as opened:
            return _upright(opened)
    except BrokenPicture as fault:
        cure = "give a smaller one" if "pixels" in str(fault) else "give a JPEG, PNG or WebP file that opens elsewhere"
        raise DatasetError(f"{path} {fault}: {cure}") from None


def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would cut them off at 255: a white picture
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise BrokenPicture(f"has values that are no colours (Pillow's mode {image.mode})")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def photos_in(paths: Iterable[Path]) -> list[Path]:
    """The files that are named, and in their place the pictures of every folder, by name; each file once.

    DatasetError where a path is not there or no file, or a folder has no picture.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DatasetError(f"--image {path} is missing: give an image file or a folder of them")
        if not path.is_dir():
            if not path.is_file():
                raise DatasetError(f"--image {path} is no file: give an image file or a folder of them")
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise DatasetError(f"--image {path} has no picture ({', '.join(SUFFIXES)}): give another folder, or files")
        found += inside
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())
