"""Your own photos and masks: `samples.jsonl` in the data root, one line per image.

{"image": "photos/a.jpg", "pieces": [{"text": "the red mug", "mask": "masks/a1.png"}, {"text": "."}]}

image    path of the photo, relative to the root (as are mask files)
pieces   the answer, in order; each {"text": …, and for a piece that names an object
           "mask": "file.png" (same size as the photo; every pixel that is not black belongs to the object)
                 | {"rle": {"size": [h, w], "counts": …}} | {"polygon": [x0, y0, x1, y1, …] or a list of those}
           "plural": false, "is_thing": true}
task     "referring" (default: expressions) | "narrative" (phrases of a caption)
split    "test" (default) or any other name
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from PIL import Image

from manifests.errors import DatasetError
from manifests.masks import Rle, encode, from_segmentation
from manifests.schema import Object, Piece, Sample, Task, leaves_root

FILE: Final = "samples.jsonl"
_LINE_KEYS: Final = {"image": str, "pieces": list, "task": str, "split": str}
_PIECE_KEYS: Final = {"text": str, "mask": (str, dict, type(None)), "plural": bool, "is_thing": bool}
_BROKEN_IMAGE: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_own(root: str | Path) -> list[Sample]:
    """All samples of `samples.jsonl`, masks read. Raises DatasetError with line number, fault and cure for a bad line.

    Paths that leave the root, also through a symbolic link, are refused: a line may come from someone else.
    """
    root = Path(root)
    path = root / FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} can not be read ({error}): write one JSON line per image, see the docs") from None
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(root, line, number))
        except (ValueError, OSError, RuntimeError) as error:  # DatasetError is a ValueError; a loop of links: Runtime
            raise DatasetError(f"{path}, line {number}: {error}") from None
    if not samples:
        raise DatasetError(f"{path} is empty: write one JSON line per image")
    return samples


def _sample(root: Path, line: str, number: int) -> Sample:
    """The sample of one line. Raises ValueError with fault and cure."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}): write one object {{…}} per line") from None
    _check(row, _LINE_KEYS, ("image", "pieces"), "the line")
    task, split = row.get("task", "referring"), row.get("split", "test")
    if task not in get_args(Task):
        raise ValueError(f"task {task!r} is unknown: use one of {', '.join(get_args(Task))}")
    if not split.strip() or not row["pieces"]:
        raise ValueError("split and pieces must not be empty")
    width, height = _image_size(_inside(root, row["image"]), row["image"])
    sample_id = f"own/{split}/{number}"
    pieces: list[Piece] = []
    objects: list[Object] = []
    for k, piece in enumerate(row["pieces"]):
        try:
            _check(piece, _PIECE_KEYS, ("text",), "it")
            grounded = piece.get("mask") is not None
            pieces.append(Piece(text=piece["text"], object=len(objects) if grounded else None))
            if grounded:
                mask = _mask(root, piece["mask"], height, width)
                objects.append(_object(piece, mask, f"{sample_id}/{k}"))
        except ValueError as error:
            raise ValueError(f"piece {k}: {error}") from None
    return Sample(
        sample_id=sample_id,
        dataset="own",
        split=split,
        task=task,
        image_id=row["image"],
        image_path=row["image"],
        height=height,
        width=width,
        pieces=tuple(pieces),
        objects=tuple(objects),
    )


def _object(piece: dict[str, Any], mask: Rle, object_id: str) -> Object:
    plural = piece.get("plural", False)
    return Object(
        object_id=object_id,
        mask=mask,
        is_thing=plural or piece.get("is_thing", True),
        plural=plural,
        category="",
        phrase=piece["text"],
    )


def _mask(root: Path, given: str | dict[str, Any], height: int, width: int) -> Rle:
    if isinstance(given, str):
        return _mask_file(_inside(root, given), given, height, width)
    if list(given) == ["rle"]:
        if not isinstance(given["rle"], dict):
            raise ValueError("a mask's rle is {size, counts}")
        rle = from_segmentation(given["rle"], height, width)
        if rle["size"] != [height, width]:
            raise ValueError(f"the rle is {rle['size']}, the photo [{height}, {width}]: give it at the photo's size")
        return rle
    if list(given) == ["polygon"]:
        points = given["polygon"]
        nested = isinstance(points, list) and points and isinstance(points[0], list)
        return from_segmentation(points if nested else [points], height, width)
    raise ValueError(f"a mask is a png's path, {{'rle': …}} or {{'polygon': …}}, not an object with {list(given)}")


def _mask_file(path: Path, name: str, height: int, width: int) -> Rle:
    try:
        with Image.open(path) as image:
            pixels, bands = np.asarray(image), image.getbands()
    except FileNotFoundError:
        raise ValueError(f"mask {name!r} is missing: put it there or correct the path") from None
    except _BROKEN_IMAGE as error:
        raise ValueError(f"mask {name!r} can not be decoded ({error}): save it again as png") from None
    if pixels.shape[:2] != (height, width):
        raise ValueError(
            f"mask {name!r} is {pixels.shape[1]}x{pixels.shape[0]} pixels, the photo {width}x{height} as stored (a "
            "camera's rotation flag is not applied): save both at one size"
        )
    if pixels.ndim == 3:  # transparency says nothing about the object
        pixels = pixels[..., [band != "A" for band in bands]].max(-1)
    return encode(pixels)


def _image_size(path: Path, name: str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise ValueError(f"image {name!r} is missing: put it there or correct the path") from None
    except _BROKEN_IMAGE as error:
        raise ValueError(f"image {name!r} can not be decoded ({error}): replace the file") from None


def _inside(root: Path, name: str) -> Path:
    """The file's path. Raises ValueError where it is not under the root, links resolved."""
    if leaves_root(name) or not (root / name).resolve().is_relative_to(root.resolve()):
        raise ValueError(f"path {name!r} leaves the data root: copy the file into it and give the path relative to it")
    return root / name


def _check(row: Any, known: dict[str, Any], needed: tuple[str, ...], what: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{what} is not a JSON object: it needs {', '.join(needed)}")
    if missing := [key for key in needed if key not in row]:
        raise ValueError(f"{what} lacks {', '.join(missing)}: add it")
    if unknown := [key for key in row if key not in known]:
        raise ValueError(f"{what} has an unknown key {', '.join(unknown)}: known are {', '.join(known)}")
    if wrong := [key for key, value in row.items() if not isinstance(value, known[key])]:
        raise ValueError(
            f"{what} has a value of the wrong type under {', '.join(wrong)}: see the docs of samples.jsonl"
        )
