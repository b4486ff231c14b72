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

from manifests.errors import DatasetError, NotThere
from manifests.files import by_id, check_record, check_size, read_json, records
from manifests.masks import encode
from manifests.pictures import BrokenPicture, opened_picture
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
    def read(cls, path: Path, folder: Path | None, source: str) -> Panoptic:
        """folder: of the pngs; None: `ids` will not be asked for.

        Raises DatasetError, which ends in `source`, for a file of another format and a missing folder.
        """
        content = read_json(path, dict, source)
        if folder is not None and not folder.is_dir():
            raise NotThere(f"the folder {folder} of the panoptic pngs is missing: {source}")
        records_of = lambda key: records(content, key, path)  # noqa: E731
        fields = {"id": int, "file_name": str, "height": int, "width": int}
        images = by_id(records_of("images"), fields, f"{path}: images")
        for image in images.values():
            check_size(image["height"], image["width"], f"{path}: image {image['id']}")
        kinds: dict[str, type | tuple[type, ...]] = {"id": int, "name": str, "isthing": (int, bool)}
        categories = by_id(records_of("categories"), kinds, f"{path}: categories")
        annotations = records_of("annotations")
        segments: dict[int, dict[int, Segment]] = {}
        for row in annotations:
            check_record(row, {"image_id": int, "file_name": str, "segments_info": list}, f"{path}: annotations")
            if row["image_id"] in segments:
                raise DatasetError(f"{path} annotates image {row['image_id']} twice: {source}")
            where = f"{path}: image {row['image_id']}, segments_info"
            segments[row["image_id"]] = _segments(row["segments_info"], categories, where, source)
        files = {row["image_id"]: folder / Path(row["file_name"]).name for row in annotations if folder}
        return cls(images=images, files=files, segments=segments)

    def ids(self, image_id: int) -> tuple[np.ndarray, str | None]:
        """int [height, width], the segment id of each pixel; where it can not be had, -1 everywhere and the reason."""
        size = (self.images[image_id]["height"], self.images[image_id]["width"])
        nowhere = np.broadcast_to(np.int32(-1), size)  # of no memory of its own
        path = self.files.get(image_id)
        if path is None:
            return nowhere, f"image {image_id} has no annotation in the panoptic json: download it again"
        try:
            return _ids(path, size), None
        except BrokenPicture as fault:
            return nowhere, f"{path.parent.name}/{path.name} {fault}: download it again"


def _segments(rows: list[Any], categories: dict[int, dict[str, Any]], where: str, source: str) -> dict[int, Segment]:
    known = by_id(rows, {"id": int, "category_id": int}, where)
    for number, info in known.items():
        if not 0 <= number < 1 << 24:
            raise DatasetError(f"{where}: a png can not hold segment {number}: {source}")
        if info["category_id"] not in categories:
            raise DatasetError(f"{where}: there is no category {info['category_id']}: {source}")
    return {number: _segment(info, categories[info["category_id"]]) for number, info in known.items()}


def _segment(info: dict[str, Any], category: dict[str, Any]) -> Segment:
    return Segment(
        category=category["name"], is_thing=bool(category["isthing"]), crowd=info.get("iscrowd", 0) not in (0, False)
    )


def panoptic_ids(path: Path) -> np.ndarray | None:
    """int32 [h, w], the segment id of each pixel of a panoptic png (0: none); None if it is missing, not decodable, or
    has more pixels than `manifests.pictures.MAX_PIXELS`."""
    try:
        return _ids(path)
    except BrokenPicture:
        return None


def _ids(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """As `panoptic_ids`. size: (height, width), looked at before pixels are decoded. Raises BrokenPicture."""
    with opened_picture(path) as image:
        if size is not None and (image.height, image.width) != size:
            found, told = ("x".join(map(str, shape)) for shape in ((image.height, image.width), size))
            raise BrokenPicture(f"is {found} pixels (height x width), the panoptic json says {told}")
        rgb = np.asarray(image.convert("RGB"))
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids = (ids << 8) | rgb[..., channel]
    return ids


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
    truth = _truth(Path(root), split, panoptic, panoptic_dir or f"annotations/panoptic_{split}2017")
    return _samples(truth, split, image_dir or f"{split}2017", dataset_name)


def image_paths(
    root: str | Path,
    split: str,
    *,
    panoptic: str | Path | None = None,
    image_dir: str | None = None,
) -> Iterator[str]:
    """`image_path` of every sample of `read_panoptic`; the pngs need not be there."""
    images = _truth(Path(root), split, panoptic, None).images
    return (f"{image_dir or f'{split}2017'}/{image['file_name']}" for image in images.values())


def _truth(root: Path, split: str, panoptic: str | Path | None, panoptic_dir: str | Path | None) -> Panoptic:
    if split not in SPLITS:
        raise DatasetError(f"COCO panoptic has no split {split!r}; it has {', '.join(SPLITS)}")
    return Panoptic.read(
        root / (panoptic or f"annotations/panoptic_{split}2017.json"),
        None if panoptic_dir is None else root / panoptic_dir,
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
