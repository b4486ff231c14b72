"""COCO panoptic: every segment of an image under the name of its category ("the sky.", "a dog."), to train on.

`panoptic_<split>2017.json` + .png say which pixels a segment has: id = R + 256 G + 65536 B. F-LMM trains on RefCOCO and
PNG; this is broader data for the same heads. `manifests.png` has narratives about the same segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from manifests.errors import DatasetError
from manifests.files import check_record, check_size, read_json, records, short
from manifests.masks import encode
from manifests.pictures import picture_size
from manifests.schema import Object, Piece, Sample

SOURCE: Final = (
    "get panoptic annotations and images from https://cocodataset.org; layout: annotations/panoptic_<split>2017.json, "
    "annotations/panoptic_<split>2017/*.png, <split>2017/*.jpg"
)
SPLITS: Final = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A segment's category, and whether it is a crowd: many things that nobody told apart."""

    category: str
    is_thing: bool
    crowd: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Panoptic:
    """The panoptic json, checked. By image id: its record, its png, its segments by their id."""

    images: dict[int, dict[str, Any]]
    files: dict[int, Path]
    segments: dict[int, dict[int, Segment]]

    @classmethod
    def read(cls, path: Path, folder: Path, source: str) -> Panoptic:
        """Raises DatasetError, which ends in `source`, for a file of another format and a missing folder of pngs."""
        content = read_json(path, dict, source)
        if not folder.is_dir():
            raise DatasetError(f"the folder {folder} of the panoptic pngs is missing: {source}")
        images, annotations, categories = (records(content, k, path) for k in ("images", "annotations", "categories"))
        for image in images:
            check_record(image, {"id": int, "file_name": str, "height": int, "width": int}, f"{path}: images")
            check_size(image["height"], image["width"], f"{path}: image {image['id']}")
        for category in categories:
            check_record(category, {"id": int, "name": str, "isthing": int}, f"{path}: categories")
        by_id = {category["id"]: category for category in categories}
        segments: dict[int, dict[int, Segment]] = {}
        for row in annotations:
            check_record(row, {"image_id": int, "file_name": str, "segments_info": list}, f"{path}: annotations")
            where = f"{path}: image {row['image_id']}, segments_info"
            for info in row["segments_info"]:
                check_record(info, {"id": int, "category_id": int}, where)
                if not 0 <= info["id"] < 1 << 24:
                    raise DatasetError(f"{where}: a png can not hold segment {short(info['id'])}: {source}")
                if info["category_id"] not in by_id:
                    raise DatasetError(f"{where}: there is no category {info['category_id']}: {source}")
            segments[row["image_id"]] = {i["id"]: _segment(i, by_id[i["category_id"]]) for i in row["segments_info"]}
        files = {row["image_id"]: folder / Path(row["file_name"]).name for row in annotations}
        return cls(images={image["id"]: image for image in images}, files=files, segments=segments)

    def ids(self, image_id: int) -> tuple[np.ndarray, str | None]:
        """int [height, width], the segment id of each pixel; where it can not be had, -1 everywhere and the reason."""
        size = (self.images[image_id]["height"], self.images[image_id]["width"])
        path = self.files.get(image_id)
        if path is None:
            return np.full(size, -1), f"image {image_id} has no annotation in the panoptic json: download it again"
        ids, name = panoptic_ids(path), f"{path.parent.name}/{path.name}"
        if ids is None:
            return np.full(size, -1), f"{name} is missing or can not be decoded: download it again"
        if ids.shape != size:
            found, told = ("x".join(map(str, shape)) for shape in (ids.shape, size))
            return np.full(size, -1), (
                f"{name} is {found} pixels (height x width), the panoptic json says {told}: download both again"
            )
        return ids, None


def _segment(info: dict[str, Any], category: dict[str, Any]) -> Segment:
    return Segment(
        category=category["name"], is_thing=bool(category["isthing"]), crowd=info.get("iscrowd", 0) not in (0, False)
    )


def panoptic_ids(path: Path) -> np.ndarray | None:
    """int32 [h, w], the segment id of each pixel of a panoptic png (0: none); None if it is missing, not decodable, or
    has more pixels than `manifests.pictures.MAX_PIXELS`."""
    try:
        picture_size(path)
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"))
    except Exception:  # Pillow's decoders of a broken file raise whatever they stumble over
        return None
    red, green, blue = (rgb[..., k].astype(np.int32) for k in range(3))
    return red + 256 * green + 65536 * blue


def read_panoptic(
    root: str | Path,
    split: str,
    *,
    panoptic: str | Path | None = None,
    panoptic_dir: str | Path | None = None,
    image_dir: str | None = None,
    dataset_name: str = "coco-panoptic",
) -> Iterator[Sample]:
    """One sample per image, in the order of the file: a phrase and "." for every segment, in the order of the file.

    panoptic (json), panoptic_dir (pngs): relative to `root`, or absolute; image_dir: relative to it. None: the place in
    the official layout, see `SOURCE`.

    Several things of one category have a phrase each ("a person." twice): their words differ in nothing but what was
    said before. Crowds are left out. A segment without pixels, an image without segments, a png that is missing, broken
    or of another size: the sample is listed as one that can not be used. Files are read and checked here, pngs while
    iterating. Raises DatasetError for an unknown split, a missing json or png folder and a record of another format.
    """
    truth = _truth(Path(root), split, panoptic, panoptic_dir)
    return _samples(truth, split, image_dir or f"{split}2017", dataset_name)


def image_paths(
    root: str | Path,
    split: str,
    *,
    panoptic: str | Path | None = None,
    panoptic_dir: str | Path | None = None,
    image_dir: str | None = None,
) -> Iterator[str]:
    """`image_path` of every sample of `read_panoptic`, without reading a png."""
    images = _truth(Path(root), split, panoptic, panoptic_dir).images
    return (f"{image_dir or f'{split}2017'}/{image['file_name']}" for image in images.values())


def _truth(root: Path, split: str, panoptic: str | Path | None, panoptic_dir: str | Path | None) -> Panoptic:
    if split not in SPLITS:
        raise DatasetError(f"COCO panoptic has no split {split!r}; it has {', '.join(SPLITS)}")
    return Panoptic.read(
        root / (panoptic or f"annotations/panoptic_{split}2017.json"),
        root / (panoptic_dir or f"annotations/panoptic_{split}2017"),
        SOURCE,
    )


def _samples(truth: Panoptic, split: str, image_dir: str, dataset: str) -> Iterator[Sample]:
    for image_id, image in truth.images.items():
        sample_id = f"{dataset}/{split}/{image_id}"
        ids, error = truth.ids(image_id)
        objects = tuple(
            Object(
                object_id=f"{sample_id}/{number}",
                mask=encode(ids == number),
                is_thing=segment.is_thing,
                plural=False,
                category=segment.category,
                phrase=phrase(segment),
            )
            for number, segment in truth.segments.get(image_id, {}).items()
            if not segment.crowd
        )
        yield Sample(
            sample_id=sample_id,
            dataset=dataset,
            split=split,
            task="referring",
            image_id=str(image_id),
            image_path=f"{image_dir}/{image['file_name']}",
            height=image["height"],
            width=image["width"],
            pieces=tuple(
                piece
                for k, item in enumerate(objects)
                for piece in (Piece(text=item.phrase, object=k), Piece(text="."))
            ),
            objects=objects,
            error=error,
        )


def phrase(segment: Segment) -> str:
    """What a segment is called: "a dog", "an apple", "a pair of skis"; stuff: "the sky", "the brick wall"."""
    name = readable(segment.category)
    if not segment.is_thing:
        return f"the {name}"
    if name in ("skis", "scissors"):
        return f"a pair of {name}"
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def readable(category: str) -> str:
    """COCO's name of a category as people say it: "wall-other-merged" -> "wall", "floor-wood" -> "wood floor"."""
    words = [word for word in category.split("-") if word not in ("other", "merged", "stuff")]
    if words[:1] in (["floor"], ["wall"]):
        words = words[::-1]
    return " ".join(words).strip().replace("playingfield", "playing field") or category
