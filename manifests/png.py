"""Panoptic narrative grounding (PNG): COCO captions whose phrases name segments of the panoptic annotations.

`png_coco_<split>2017.json` is a list of {image_id, caption, segments: [{utterance, noun, segment_ids, plural}]};
`panoptic_<split>2017.json` + .png say which pixels a segment has: id = R + 256 G + 65536 B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from manifests.errors import DatasetError
from manifests.files import check_record, read_json, records
from manifests.masks import encode
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


def panoptic_ids(path: Path) -> np.ndarray | None:
    """int64 [h, w], the segment id of each pixel of a panoptic png (0: none); None if missing or not decodable."""
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    except (OSError, SyntaxError, ValueError):
        return None
    return rgb @ np.array([1, 256, 65536])


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
        images, annotations, categories = (records(content, k, path) for k in ("images", "annotations", "categories"))
        for image in images:
            check_record(image, {"id": int, "file_name": str, "height": int, "width": int}, f"{path}: images")
        for category in categories:
            check_record(category, {"id": int, "name": str, "isthing": int}, f"{path}: categories")
        by_id = {category["id"]: category for category in categories}
        segments: dict[int, dict[int, dict[str, Any]]] = {}
        for row in annotations:
            check_record(row, {"image_id": int, "file_name": str, "segments_info": list}, f"{path}: annotations")
            where = f"{path}: image {row['image_id']}, segments_info"
            for info in row["segments_info"]:
                check_record(info, {"id": int, "category_id": int}, where)
                if info["category_id"] not in by_id:
                    raise DatasetError(f"{where}: there is no category {info['category_id']}: {SOURCE}")
            segments[row["image_id"]] = {info["id"]: by_id[info["category_id"]] for info in row["segments_info"]}
        files = {row["image_id"]: folder / Path(row["file_name"]).name for row in annotations}
        return cls(images={image["id"]: image for image in images}, files=files, segments=segments)


def _check_narrative(row: Any, truth: _Panoptic, where: str) -> None:
    check_record(row, {"image_id": (str, int), "segments": list}, where)
    for segment in row["segments"]:
        check_record(segment, {"utterance": str, "segment_ids": list}, f"{where}, segment")
        if not all(str(i).isdecimal() for i in segment["segment_ids"]):
            raise DatasetError(f"{where}: segment ids {segment['segment_ids']} are not whole numbers: {SOURCE}")
    image_id = str(row["image_id"])
    if not image_id.isdecimal() or int(image_id) not in truth.images:
        raise DatasetError(f"{where} is on image {image_id}, which the panoptic json does not have: {SOURCE}")


def _samples(
    rows: list[dict[str, Any]], truth: _Panoptic, split: str, image_dir: str, dataset: str
) -> Iterator[Sample]:
    told: Counter[int] = Counter()  # an image can have several narratives
    for row in rows:
        image = truth.images[int(row["image_id"])]
        sample_id = f"{dataset}/{split}/{image['id']}-{told[image['id']]}"
        told[image["id"]] += 1
        ids, error = _pixels(image, truth)
        pieces, objects = _ground(row["segments"], ids, truth.segments.get(image["id"], {}), sample_id)
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


def _pixels(image: dict[str, Any], truth: _Panoptic) -> tuple[np.ndarray, str | None]:
    """int64 [height, width], the segment id of each pixel; where they can not be had, -1 everywhere and the reason."""
    size = (image["height"], image["width"])
    path = truth.files.get(image["id"])
    if path is None:
        return np.full(size, -1), f"image {image['id']} has no annotation in the panoptic json: download it again"
    ids, name = panoptic_ids(path), f"{path.parent.name}/{path.name}"
    if ids is None:
        return np.full(size, -1), f"{name} is missing or can not be decoded: download it again"
    if ids.shape != size:
        found, told = ("x".join(map(str, shape)) for shape in (ids.shape, size))
        return np.full(size, -1), (
            f"{name} is {found} pixels (height x width), the panoptic json says {told}: download both again"
        )
    return ids, None


def _ground(
    utterances: list[dict[str, Any]], ids: np.ndarray, known: dict[int, dict[str, Any]], sample_id: str
) -> tuple[tuple[Piece, ...], tuple[Object, ...]]:
    """ids: int64 [height, width], the segment id of each pixel.  known: the image's segments -> category."""
    pieces: list[Piece] = []
    objects: list[Object] = []
    for number, record in enumerate(utterances):
        named = [int(i) for i in record["segment_ids"]]
        pieces.append(Piece(text=record["utterance"], object=len(objects) if named else None))
        if not named:
            continue
        found = [i for i in named if i in known]
        category: dict[str, Any] = known[found[0]] if found else {"name": "", "isthing": 0}
        plural = bool(record.get("plural", len(named) > 1))
        objects.append(
            Object(
                object_id=f"{sample_id}/{number}",
                mask=encode(np.isin(ids, found)),
                is_thing=plural or bool(category["isthing"]),
                plural=plural,
                category=category["name"],
                phrase=record["utterance"],
            )
        )
    return tuple(pieces), tuple(objects)
