"""Panoptic narrative grounding (PNG): COCO captions whose phrases name segments of the panoptic annotations.

`png_coco_<split>2017.json` is a list of {image_id, caption, segments: [{utterance, noun, segment_ids, plural}]};
`panoptic_<split>2017.json` + .png say which pixels a segment has: id = R + 256 G + 65536 B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.errors import DatasetError
from manifests.files import by_id, check_record, check_size, read_json, records, shown
from manifests.masks import Rle, empty, encode
from manifests.pictures import BrokenPicture, opened_picture
from manifests.schema import Object, Piece, Sample

SOURCE: Final = (
    "get the narratives from https://bcv-uniandes.github.io/panoptic-narrative-grounding, panoptic annotations and "
    "images from https://cocodataset.org; layout: png/png_coco_<split>2017.json, annotations/panoptic_<split>2017.json"
    ", annotations/panoptic_<split>2017/*.png, <split>2017/*.jpg"
)
SPLITS: Final = ("train", "val")


def read_png(
    root: str | Path,
    split: str,
    *,
    narratives: str | Path | None = None,
    panoptic: str | Path | None = None,
    panoptic_dir: str | Path | None = None,
    image_dir: str | None = None,
    dataset_name: str = "png",
) -> Iterator[Sample]:
    """One sample per narrative, in the order of the file; one object per phrase with segments, its mask their union.

    narratives, panoptic (json) and panoptic_dir (pngs): relative to `root`, or absolute; image_dir: relative to it.
    None: the place in the official layout, see `SOURCE`.

    A phrase is plural where the file says so; it then counts as thing, as PNG's metric does; else the first segment's
    category decides. A segment that the json or the png does not have: no pixels, so that `schema.problem` reports it.
    A png that is missing, broken or of another size: the `error` of its samples. Files are read and checked here, pngs
    while iterating. Raises DatasetError for an unknown split, a missing json or png folder, a record of another format
    and a narrative on an image that the panoptic json does not have.
    """
    if split not in SPLITS:
        raise DatasetError(f"PNG has no split {split!r}; it has {', '.join(SPLITS)}")
    root = Path(root)
    narratives = root / (narratives or f"png/png_coco_{split}2017.json")
    panoptic = root / (panoptic or f"annotations/panoptic_{split}2017.json")
    panoptic_dir = root / (panoptic_dir or f"annotations/panoptic_{split}2017")
    rows = read_json(narratives, list, SOURCE)
    truth = _Panoptic.read(panoptic, panoptic_dir)
    for number, row in enumerate(rows):
        _check_narrative(row, truth, f"{narratives}: narrative {number}")
    return _samples(rows, truth, split, image_dir or f"{split}2017", dataset_name)


def image_paths(
    root: str | Path,
    split: str,
    *,
    narratives: str | Path | None = None,
    panoptic: str | Path | None = None,
    image_dir: str | None = None,
) -> Iterator[str]:
    """The images of a split, relative to `root`, each once, as `read_png` names them; no png is opened.

    Raises DatasetError as `read_png` does for a json that is missing or of another format.
    """
    root, folder = Path(root), image_dir or f"{split}2017"
    told = read_json(root / (narratives or f"png/png_coco_{split}2017.json"), list, SOURCE)
    path = root / (panoptic or f"annotations/panoptic_{split}2017.json")
    names = {image["id"]: image["file_name"] for image in _image_records(read_json(path, dict, SOURCE), path).values()}
    used: dict[int, None] = {}
    for number, row in enumerate(told):
        where = f"{path}: narrative {number}"
        check_record(row, {"image_id": (str, int)}, where)
        used[_image_id(row, names, where)] = None
    yield from (f"{folder}/{names[image_id]}" for image_id in used)


def panoptic_ids(path: Path) -> np.ndarray | None:
    """int32 [h, w], the segment id of each pixel of a panoptic png (0: none); None if missing or not decodable."""
    try:
        return _segment_ids(path)
    except BrokenPicture:
        return None


def _segment_ids(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Of `panoptic_ids`. size: (height, width), looked at before its pixels are decoded. Raises BrokenPicture."""
    with opened_picture(path) as image:
        if size is not None and (image.height, image.width) != size:
            found, told = ("x".join(map(str, shape)) for shape in ((image.height, image.width), size))
            raise BrokenPicture(f"is {found} pixels (height x width), the panoptic json says {told}")
        rgb = np.asarray(image.convert("RGB"))
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids = (ids << 8) | rgb[..., channel]
    return ids


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panoptic:
    """The panoptic json: `segments` maps image id -> segment id -> category record."""

    images: dict[int, dict[str, Any]]
    files: dict[int, Path]
    segments: dict[int, dict[int, dict[str, Any]]]

    @classmethod
    def read(cls, path: Path, folder: Path) -> _Panoptic:
        content = read_json(path, dict, SOURCE)
        if not folder.is_dir():
            raise DatasetError(f"the folder {folder} of the panoptic pngs is missing: {SOURCE}")
        images = _image_records(content, path)
        annotations, categories = (records(content, key, path) for key in ("annotations", "categories"))
        kinds = by_id(categories, {"id": int, "name": str, "isthing": (int, bool)}, f"{path}: categories")
        segments: dict[int, dict[int, dict[str, Any]]] = {}
        for row in annotations:
            check_record(row, {"image_id": int, "file_name": str, "segments_info": list}, f"{path}: annotations")
            if row["image_id"] in segments:
                raise DatasetError(f"{path} annotates image {row['image_id']} twice: {SOURCE}")
            where = f"{path}: image {row['image_id']}, segments_info"
            known = by_id(row["segments_info"], {"id": int, "category_id": int}, where)
            if unknown := {info["category_id"] for info in known.values()} - set(kinds):
                raise DatasetError(f"{where}: there is no category {min(unknown)}: {SOURCE}")
            segments[row["image_id"]] = {i: kinds[info["category_id"]] for i, info in known.items()}
        files = {row["image_id"]: folder / Path(row["file_name"]).name for row in annotations}
        return cls(images=images, files=files, segments=segments)


def _image_records(content: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    where = f"{path}: images"
    images = by_id(records(content, "images", path), {"id": int, "file_name": str, "height": int, "width": int}, where)
    for image in images.values():
        check_size(image["height"], image["width"], f"{where}: image {image['id']}")
    return images


def _image_id(row: dict[str, Any], known: Collection[int], where: str) -> int:
    image_id = _whole(row["image_id"])
    if image_id not in known or image_id is None:
        raise DatasetError(
            f"{where} is on image {shown(row['image_id'])}, which the panoptic json does not have: {SOURCE}"
        )
    return image_id


def _whole(value: Any) -> int | None:
    """A whole number, also as text, as PNG writes its ids; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    return value if type(value) is int else None


def _check_narrative(row: Any, truth: _Panoptic, where: str) -> None:
    check_record(row, {"image_id": (str, int), "segments": list}, where)
    for segment in row["segments"]:
        check_record(segment, {"utterance": str, "segment_ids": list}, f"{where}, segment")
        if any(_whole(i) is None for i in segment["segment_ids"]):
            raise DatasetError(f"{where}: segment ids {shown(segment['segment_ids'])} are not whole numbers: {SOURCE}")
    _image_id(row, truth.images, where)


def _samples(
    rows: list[dict[str, Any]], truth: _Panoptic, split: str, image_dir: str, dataset: str
) -> Iterator[Sample]:
    told: Counter[int] = Counter()  # an image can have several narratives
    for row in rows:
        image = truth.images[_image_id(row, truth.images, dataset)]
        sample_id = f"{dataset}/{split}/{image['id']}-{told[image['id']]}"
        told[image["id"]] += 1
        ids, error = _pixels(image, truth)
        nothing = empty(image["height"], image["width"])
        masks = lambda found: nothing if ids is None else encode(np.isin(ids, found))  # noqa: E731, B023 used at once
        pieces, objects = _ground(row["segments"], masks, truth.segments.get(image["id"], {}), sample_id)
        yield Sample(
            sample_id=sample_id,
            dataset=dataset,
            split=split,
            task="narrative",
            image_id=str(image["id"]),
            image_path=f"{image_dir}/{image['file_name']}",
            height=image["height"],
            width=image["width"],
            pieces=pieces,
            objects=objects,
            error=error,
        )


def _pixels(image: dict[str, Any], truth: _Panoptic) -> tuple[np.ndarray | None, str | None]:
    """int32 [height, width], the segment id of each pixel; where they can not be had, None and the reason."""
    path = truth.files.get(image["id"])
    if path is None:
        return None, f"image {image['id']} has no annotation in the panoptic json: download it again"
    try:
        return _segment_ids(path, (image["height"], image["width"])), None
    except BrokenPicture as fault:
        return None, f"{path.parent.name}/{path.name} {fault}: download it again"


def _ground(
    utterances: list[dict[str, Any]],
    mask_of: Callable[[list[int]], Rle],
    known: dict[int, dict[str, Any]],
    sample_id: str,
) -> tuple[tuple[Piece, ...], tuple[Object, ...]]:
    """mask_of: the pixels of these segments.  known: the image's segments -> category."""
    pieces: list[Piece] = []
    objects: list[Object] = []
    for number, record in enumerate(utterances):
        named = [_whole(i) for i in record["segment_ids"]]
        pieces.append(Piece(text=record["utterance"], object=len(objects) if named else None))
        if not named:
            continue
        found = [i for i in named if i in known]
        category: dict[str, Any] = known[found[0]] if found else {"name": "", "isthing": 0}
        plural = bool(record.get("plural", len(named) > 1))
        objects.append(
            Object(
                object_id=f"{sample_id}/{number}",
                mask=mask_of(found),
                is_thing=plural or bool(category["isthing"]),
                plural=plural,
                category=category["name"],
                phrase=record["utterance"],
            )
        )
    return tuple(pieces), tuple(objects)
