"""ReasonSeg: a question that needs reasoning about an image, and polygons of the thing that answers it.

`reason_seg/ReasonSeg/<split>/X.jpg` with `X.json` beside it: {"shapes": [{"label", "points": [[x, y], …]}, …], "text":
[question, …], "is_sentence"}. Facts of the format, and how shapes become a mask, are those of the official reader,
https://github.com/dvlab-research/LISA/blob/main/utils/data_processing.py (polygons: see `manifests.polygons`); the
splits have 239, 200 and 779 images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from manifests.errors import DatasetError, NotThere
from manifests.files import check_record, text_fault
from manifests.masks import Rle, empty, encode
from manifests.pictures import MAX_PIXELS, picture_size
from manifests.polygons import draw_window
from manifests.refcoco import Sentences
from manifests.schema import Object, Sample

SOURCE: Final = (
    "get ReasonSeg as https://github.com/dvlab-research/LISA#dataset says; layout: "
    "reason_seg/ReasonSeg/<train|val|test>/*.jpg and *.json"
)
SPLITS: Final = ("train", "val", "test")
SHORT_QUESTION: Final = "What is {text} in this image?"
"""How a short query, a noun phrase, is asked: as LISA and F-LMM do, without LISA's request for a mask."""
BRIEFLY: Final = "Briefly answer the question in a single sentence."
"""What F-LMM's evaluation (its scripts/reason_seg.py) ends every question with."""
MAX_SHAPES: Final = 1000
MAX_DRAWN: Final = MAX_PIXELS
"""Pixels of the boxes around all shapes of an image together, which take seconds; an annotator's have far fewer."""


def read_reasonseg(
    root: str | Path,
    split: str,
    *,
    sentences: Sentences = "first",
    ending: str = BRIEFLY,
    folder: str = "reason_seg/ReasonSeg",
    dataset_name: str = "reasonseg",
) -> Iterator[Sample]:
    """One sample per image, in the order of the file names; its one object's mask may be empty.

    sentences "first": of several texts (in train, rephrased by a language model) the first, as the official evaluation
    does; "all": each text is a sample.  folder: relative to `root`.

    A long text (`is_sentence`) is the prompt as it is, and so is a short one that ends in "?"; any other short one is
    asked as `SHORT_QUESTION`. `ending` follows every question. `Sample.group` is "long" or "short".

    Shapes are painted by descending area, so that the smaller wins where two overlap, whatever they are; of equal ones
    the earlier. "ignore" in a label means pixels that do not count, the label "flag" a shape that is skipped. The size
    is that of the jpg as stored; OpenCV, and so the official reader, would turn it as the camera's flag says.

    The folder is looked up here, files are read while iterating. A json or jpg that is missing or broken is the error
    of its samples. Raises DatasetError for an unknown split or choice and for a folder that is missing or empty.
    """
    if sentences not in get_args(Sentences):
        raise DatasetError(f"sentences is first or all, got {sentences!r}")
    names = _names(Path(root), split, folder)
    return _samples(Path(root), names, split, sentences, ending, folder, dataset_name)


def image_paths(root: str | Path, split: str, *, folder: str = "reason_seg/ReasonSeg") -> Iterator[str]:
    """`image_path` of every image of a split, from the names of its files alone."""
    return (f"{folder}/{split}/{name}.jpg" for name in _names(Path(root), split, folder))


def _names(root: Path, split: str, folder: str) -> list[str]:
    """Every X of the split's X.jpg and X.json, sorted."""
    if split not in SPLITS:
        raise DatasetError(f"ReasonSeg has no split {split!r}; it has {', '.join(SPLITS)}")
    place = root / folder / split
    if not place.is_dir():
        raise NotThere(f"the folder {place} is missing: {SOURCE}")
    names = sorted({path.stem for path in place.iterdir() if path.suffix in (".jpg", ".json")})
    if not names:
        raise NotThere(f"the folder {place} holds no jpg and no json: {SOURCE}")
    return names


@dataclass(kw_only=True, slots=True)
class _Annotation:
    """A checked X.json with its masks, or as much of it as could be read and what is wrong."""

    texts: tuple[str, ...] = ("",)
    group: str = ""
    height: int = 1
    width: int = 1
    target: Rle = field(default_factory=lambda: empty(1, 1))
    ignore: Rle | None = None
    error: str | None = None


def _samples(
    root: Path, names: list[str], split: str, sentences: Sentences, ending: str, folder: str, dataset: str
) -> Iterator[Sample]:
    for name in names:
        found = _read(root / folder / split, name)
        for k, text in enumerate(found.texts if sentences == "all" else found.texts[:1]):
            fault = text_fault(text) if text else "is empty"
            error = found.error or (fault and f"{name}.json: text {k} {fault}: correct it")
            said = "" if error and fault else text
            asked = said if found.group == "long" or said.endswith("?") else SHORT_QUESTION.format(text=said)
            object_id = f"{dataset}/{split}/{name}"
            yield Sample(
                sample_id=f"{object_id}-{k}",
                dataset=dataset,
                split=split,
                task="reasoning",
                image_id=name,
                image_path=f"{folder}/{split}/{name}.jpg",
                height=found.height,
                width=found.width,
                prompt=f"{asked} {ending}".strip(),
                pieces=(),
                objects=(
                    Object(
                        object_id=object_id,
                        mask=found.target,
                        is_thing=True,
                        plural=False,
                        category="",
                        phrase=said,
                        ignore=found.ignore,
                    ),
                ),
                group=found.group,
                error=error,
            )


def _read(place: Path, name: str) -> _Annotation:
    """The annotation of image `name`; what is wrong with json or jpg is its `error`."""
    found = _Annotation()
    try:
        row = _record(place / f"{name}.json")
        found.texts = tuple(text.strip() for text in row["text"])
        found.group = "long" if row["is_sentence"] else "short"
        found.height, found.width = picture_size(place / f"{name}.jpg")
        found.target = empty(found.height, found.width)
        found.target, found.ignore = _masks(row["shapes"], found.height, found.width, f"{name}.json")
    except ValueError as fault:
        found.error = str(fault)
    return found


def _record(path: Path) -> dict[str, Any]:
    """The checked json: UTF-8, else code page 1252. Raises ValueError with the file's name, the fault and the cure."""
    try:
        data = path.read_bytes()
    except OSError:
        raise ValueError(f"{path.name} is missing or can not be read: {SOURCE}") from None
    row = _parsed(data, "utf-8-sig") or _parsed(data, "cp1252")
    if row is None:
        raise ValueError(f"{path.name} is not JSON: {SOURCE}")
    check_record(row, {"shapes": list, "text": list, "is_sentence": (bool, int)}, path.name)
    for shape in row["shapes"]:
        check_record(shape, {"label": str, "points": list}, f"{path.name}: shapes")
    if not row["text"] or not all(isinstance(text, str) for text in row["text"]):
        raise ValueError(f"{path.name}: text is not a list of one question or more: correct it")
    if len(row["shapes"]) > MAX_SHAPES:
        raise ValueError(f"{path.name} has {len(row['shapes'])} shapes, {MAX_SHAPES} are allowed: correct it")
    return row


def _parsed(data: bytes, encoding: str) -> Any:
    """The JSON value, None where it is none in this encoding."""
    try:
        return json.loads(data.decode(encoding))
    except (ValueError, RecursionError):
        return None


def _masks(shapes: list[dict[str, Any]], height: int, width: int, where: str) -> tuple[Rle, Rle | None]:
    """The pixels asked for, and those that do not count (None: every pixel counts).

    Raises ValueError, naming `where`, for points that are no numbers or lie far outside the image, and for shapes that
    cover more than `MAX_DRAWN` together.
    """
    drawn: list[tuple[bool, tuple[slice, slice], np.ndarray]] = []
    for number, shape in enumerate(shapes):
        label = shape["label"].lower()
        if label == "flag":  # deprecated annotations without a meaning
            continue
        try:
            window, inside = draw_window(_points(shape["points"], height, width), height, width)
        except ValueError as fault:
            raise ValueError(f"{where}: shape {number} is {fault}: correct it") from None
        drawn.append(("ignore" in label, window, inside))
        if sum(inside.size for _, _, inside in drawn) > MAX_DRAWN:
            raise ValueError(
                f"{where}: its shapes are larger than {MAX_DRAWN:,} pixels together: correct it, or use a smaller photo"
            )
    target, ignore = np.zeros((2, height, width), bool)
    # the official order: by area, ascending and stable, then reversed
    for ignored, window, inside in reversed(sorted(drawn, key=lambda item: np.count_nonzero(item[2]))):
        target[window][inside], ignore[window][inside] = not ignored, ignored
    return encode(target), encode(ignore) if ignore.any() else None


def _points(points: list[Any], height: int, width: int) -> list[tuple[float, float]]:
    """Checked (x, y) pairs, each at most two image sizes away."""
    reach = 2 * max(height, width)
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(type(n) in (int, float) for n in point)):
            raise ValueError("a polygon with a point that is not [x, y]")
        if not all(-reach <= n <= 2 * reach for n in point):  # also true of NaN
            raise ValueError(f"a polygon with a point far outside the image of {height}x{width} pixels")
    return [(float(x), float(y)) for x, y in points]
