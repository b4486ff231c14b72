"""Panoptic narrative grounding (PNG): COCO captions whose phrases name segments of the panoptic annotations.

`png_coco_<split>2017.json` is a list of {image_id, caption, segments: [{utterance, noun, segment_ids, plural}]};
`manifests.panoptic` knows which pixels a segment has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.errors import DatasetError
from manifests.files import check_record, read_json, shown
from manifests.masks import encode
from manifests.panoptic import SPLITS, Panoptic, Segment
from manifests.schema import Object, Piece, Sample

SOURCE: Final = (
    "get the narratives from https://bcv-uniandes.github.io/panoptic-narrative-grounding, panoptic annotations and "
    "images from https://cocodataset.org; layout: png/png_coco_<split>2017.json, annotations/panoptic_<split>2017.json"
    ", annotations/panoptic_<split>2017/*.png, <split>2017/*.jpg"
)


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
    panoptic_dir = panoptic_dir or f"annotations/panoptic_{split}2017"
    rows, truth = _read(Path(root), split, narratives, panoptic, panoptic_dir)
    return _samples(rows, truth, split, image_dir or f"{split}2017", dataset_name)


def image_paths(
    root: str | Path,
    split: str,
    *,
    narratives: str | Path | None = None,
    panoptic: str | Path | None = None,
    image_dir: str | None = None,
) -> Iterator[str]:
    """`image_path` of every sample of `read_png`; the pngs need not be there."""
    rows, truth = _read(Path(root), split, narratives, panoptic, None)
    return (f"{image_dir or f'{split}2017'}/{truth.images[int(row['image_id'])]['file_name']}" for row in rows)


def _read(
    root: Path,
    split: str,
    narratives: str | Path | None,
    panoptic: str | Path | None,
    panoptic_dir: str | Path | None,
) -> tuple[list[dict[str, Any]], Panoptic]:
    if split not in SPLITS:
        raise DatasetError(f"PNG has no split {split!r}; it has {', '.join(SPLITS)}")
    narratives = root / (narratives or f"png/png_coco_{split}2017.json")
    rows = read_json(narratives, list, SOURCE)
    truth = Panoptic.read(
        root / (panoptic or f"annotations/panoptic_{split}2017.json"),
        None if panoptic_dir is None else root / panoptic_dir,
        SOURCE,
    )
    for number, row in enumerate(rows):
        _check_narrative(row, truth, f"{narratives}: narrative {number}")
    return rows, truth


def _check_narrative(row: Any, truth: Panoptic, where: str) -> None:
    check_record(row, {"image_id": (str, int), "segments": list}, where)
    for segment in row["segments"]:
        check_record(segment, {"utterance": str, "segment_ids": list}, f"{where}, segment")
        if not all(_is_number(i) for i in segment["segment_ids"]):
            raise DatasetError(f"{where}: segment ids {shown(segment['segment_ids'])} are not whole numbers: {SOURCE}")
    image_id = row["image_id"]
    if not _is_number(image_id) or int(image_id) not in truth.images:
        raise DatasetError(f"{where} is on image {shown(image_id)}, which the panoptic json does not have: {SOURCE}")


def _is_number(value: Any) -> bool:
    """A whole number, perhaps as text, of a length that ids have."""
    if isinstance(value, str):
        return value.isdecimal() and len(value) < 19
    return type(value) is int and 0 <= value < 1 << 63


def _samples(rows: list[dict[str, Any]], truth: Panoptic, split: str, image_dir: str, dataset: str) -> Iterator[Sample]:
    told: Counter[int] = Counter()  # an image can have several narratives
    for row in rows:
        image = truth.images[int(row["image_id"])]
        sample_id = f"{dataset}/{split}/{image['id']}-{told[image['id']]}"
        told[image["id"]] += 1
        ids, error = truth.ids(image["id"])
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


def _ground(
    utterances: list[dict[str, Any]], ids: np.ndarray, known: dict[int, Segment], sample_id: str
) -> tuple[tuple[Piece, ...], tuple[Object, ...]]:
    """ids: int64 [height, width], the segment id of each pixel.  known: the image's segments."""
    pieces: list[Piece] = []
    objects: list[Object] = []
    for number, record in enumerate(utterances):
        named = [int(i) for i in record["segment_ids"]]
        pieces.append(Piece(text=record["utterance"], object=len(objects) if named else None))
        if not named:
            continue
        found = [i for i in named if i in known]
        first = known[found[0]] if found else Segment(category="", is_thing=False, crowd=False)
        plural = bool(record.get("plural", len(named) > 1))
        objects.append(
            Object(
                object_id=f"{sample_id}/{number}",
                mask=encode(np.isin(ids, found)),
                is_thing=plural or first.is_thing,
                plural=plural,
                category=first.category,
                phrase=record["utterance"],
            )
        )
    return tuple(pieces), tuple(objects)
