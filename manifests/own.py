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

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.errors import DatasetError, NotThere
from manifests.files import digest, is_unicode, parse_json, shown
from manifests.masks import Rle, empty, encode, from_segmentation
from manifests.pictures import BrokenPicture, opened_picture
from manifests.schema import Object, Piece, Sample, leaves_root

FILE: Final = "samples.jsonl"
DEFAULT_SPLIT: Final = "test"
_LINE_KEYS: Final = {"image": str, "pieces": list, "task": str, "split": str}
_PIECE_KEYS: Final = {"text": str, "mask": (str, dict, type(None)), "plural": bool, "is_thing": bool}
_TASKS: Final = ("referring", "narrative")
_CURE: Final = {"is missing": "put it there or correct the path"}


def read_own(root: str | Path) -> list[Sample]:
    """All samples of `samples.jsonl`, masks read. A photo or mask that can not be used is its sample's `error`.

    Raises DatasetError with line number, fault and cure for a line that is not of the format.
    Paths that leave the root, also through a symbolic link, are refused: a line may come from someone else.
    """
    root = Path(root)
    samples = []
    for number, line in _lines(root):
        try:
            samples.append(_sample(root, line, number))
        except (ValueError, OSError, RuntimeError) as error:  # DatasetError is a ValueError; a loop of links: Runtime
            raise DatasetError(f"{root / FILE}, line {number}: {error}") from None
    if not samples:
        raise DatasetError(f"{root / FILE} is empty: write one JSON line per image")
    return samples


def image_paths(root: str | Path, split: str) -> Iterator[str]:
    """The photos of a split, relative to `root`, each once; no file but `samples.jsonl` is opened."""
    found: dict[str, None] = {}
    for number, line in _lines(Path(root)):
        row = _row(line, f"{Path(root) / FILE}, line {number}: ")
        if row.get("split", DEFAULT_SPLIT) == split:
            found[row["image"]] = None
    yield from found


def split_names(root: str | Path) -> list[str]:
    """The splits of `samples.jsonl`, in the order of their first lines."""
    rows = (_row(line, f"{Path(root) / FILE}, line {number}: ") for number, line in _lines(Path(root)))
    return list(dict.fromkeys(row.get("split", DEFAULT_SPLIT) for row in rows))


def _lines(root: Path) -> list[tuple[int, str]]:
    """The lines that hold something, with their numbers from 1."""
    path = root / FILE
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        kind = NotThere if isinstance(error, FileNotFoundError) else DatasetError
        raise kind(f"{path} can not be read ({error}): write one JSON line per image, see the docs") from None
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _row(line: str, where: str = "") -> dict[str, Any]:
    """The checked JSON object of a line. Raises DatasetError, beginning with `where`."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DatasetError(f"{where}not JSON ({error}): write one object {{…}} per line") from None
    _check(row, _LINE_KEYS, ("image", "pieces"), f"{where}the line")
    return row


def _sample(root: Path, line: str, number: int) -> Sample:
    """The sample of one line. Raises DatasetError with fault and cure where the line is not of the format.

    What is wrong with the photo or a mask it names is a plain ValueError below, and here the sample's `error`.
    """
    row = _row(line)
    task, split = row.get("task", "referring"), row.get("split", DEFAULT_SPLIT)
    if task not in _TASKS:
        raise DatasetError(f"task {shown(task)} is unknown: use one of {', '.join(_TASKS)}")
    if not split.strip():
        raise DatasetError("split must not be empty: name it, or leave it out")
    photo, faults = _inside(root, row["image"]), []
    try:
        with opened_picture(photo) as image:
            width, height = image.size
    except BrokenPicture as fault:
        width, height = 1, 1  # the size is not known; the smallest that a mask can have
        faults.append(f"image {shown(row['image'])} {fault}: {_CURE.get(str(fault), 'replace the file')}")
    # with the digest, lines of the same number in two folders have ids of their own: their caches can be merged
    sample_id = f"own/{split}/{number}-{digest(row)}"
    pieces: list[Piece] = []
    objects: list[Object] = []
    for k, piece in enumerate(row["pieces"]):
        try:
            _check(piece, _PIECE_KEYS, ("text",), "it")
            mask = None if piece.get("mask") is None else _mask(root, piece["mask"], height, width)
        except DatasetError as error:
            raise DatasetError(f"piece {k}: {error}") from None
        except ValueError as fault:
            faults.append(f"piece {k}: {fault}")
            mask = empty(height, width)
        pieces.append(Piece(text=piece["text"], object=None if mask is None else len(objects)))
        if mask is not None:
            objects.append(_object(piece, mask, f"{sample_id}/{k}"))
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
        error=f"{FILE}, line {number}: {faults[0]}" if faults else None,
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
    if list(given) not in (["rle"], ["polygon"]):
        raise DatasetError(
            f"a mask is a png's path, {{'rle': …}} or {{'polygon': …}}, not an object with {shown(list(given))}"
        )
    ((kind, segmentation),) = given.items()
    if kind == "rle" and not isinstance(segmentation, dict):
        raise DatasetError("a mask's rle is {size, counts}")
    if kind == "polygon":
        nested = isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list)
        segmentation = segmentation if nested else [segmentation]
    try:
        rle = from_segmentation(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"its {kind} is broken ({error}): correct it") from None
    if rle["size"] != [height, width]:
        raise ValueError(f"the rle is {rle['size']}, the photo [{height}, {width}]: give it at the photo's size")
    return rle


def _mask_file(path: Path, name: str, height: int, width: int) -> Rle:
    try:
        with opened_picture(path) as image:
            size = image.size
            coloured = image.convert("RGB") if image.mode in ("P", "PA") else image  # no numbers of a palette
            bands = coloured.getbands()
            pixels = np.asarray(coloured) if size == (width, height) else None
    except BrokenPicture as fault:
        raise ValueError(f"mask {shown(name)} {fault}: {_CURE.get(str(fault), 'save it again as png')}") from None
    if pixels is None:
        raise ValueError(
            f"mask {shown(name)} is {size[0]}x{size[1]} pixels, the photo {width}x{height} as stored (a "
            "camera's rotation flag is not applied): save both at one size"
        )
    if pixels.ndim == 3:  # transparency says nothing about the object
        pixels = pixels[..., [band != "A" for band in bands]].max(-1)
    return encode(pixels)


def _inside(root: Path, name: str) -> Path:
    """The file's path. Raises DatasetError where it is not under the root, links resolved."""
    if not is_unicode(name):
        raise DatasetError(f"path {shown(name)} is not Unicode: rename the file")
    if leaves_root(name) or not (root / name).resolve().is_relative_to(root.resolve()):
        raise DatasetError(
            f"path {shown(name)} leaves the data root: copy the file into it and give the path relative to it"
        )
    return root / name


def _check(row: Any, known: dict[str, Any], needed: tuple[str, ...], what: str) -> None:
    if not isinstance(row, dict):
        raise DatasetError(f"{what} is not a JSON object: it needs {', '.join(needed)}")
    if missing := [key for key in needed if key not in row]:
        raise DatasetError(f"{what} lacks {', '.join(missing)}: add it")
    if unknown := [key for key in row if key not in known]:
        name = unknown[0] if unknown[0].isidentifier() and len(unknown[0]) < 60 else shown(unknown[0])
        raise DatasetError(f"{what} has an unknown key {name}: known are {', '.join(known)}")
    if wrong := [key for key, value in row.items() if not isinstance(value, known[key])]:
        raise DatasetError(
            f"{what} has a value of the wrong type under {', '.join(wrong)}: see the docs of samples.jsonl"
        )
