"""Your own photos with annotations in COCO's format: `annotations/<split>.json`, photos below `images/`.

{"images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
 "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[x0, y0, x1, y1, …]], "phrase": "…"}],
 "categories": [{"id": 1, "name": "dog"}]}

segmentation   polygons, or an RLE {"size": [h, w], "counts": …} at the image's size
phrase         optional, or `caption`: the words that name this object alone
iscrowd        1: many instances under one mask
isthing        of a category, 0 for stuff such as sky (default 1)

An annotation with a phrase is an object. Those without are named by their category, and a name that fits several
instances says nothing about which: all of one category in an image are one object, plural if there are two or a crowd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from manifests.errors import DatasetError, NotThere
from manifests.files import by_id, check_record, check_size, digest, read_json, records
from manifests.masks import Rle, empty, from_segmentation, union
from manifests.refcoco import Context
from manifests.schema import Object, Piece, Sample

NAME: Final = "own-coco"
SOURCE: Final = "write it as docs/your-data.md says; layout: annotations/<split>.json, images/…"

_OTHER: Final = re.compile(r"(?:panoptic|captions|image_info)_.*20\d\d")  # official files that lie in annotations/ too


def split_names(root: str | Path) -> list[str]:
    """The names of the files in `annotations/`, but of COCO's of another format. NotThere where there are none."""
    names = (path.stem for path in (Path(root) / "annotations").glob("*.json"))
    found = sorted(name for name in names if not _OTHER.fullmatch(name))
    if not found:
        raise NotThere(f"{Path(root) / 'annotations'} holds no <split>.json: {SOURCE}")
    return found


def read_own_coco(root: str | Path, split: str, *, context: Context = "joined") -> Iterator[Sample]:
    """One sample per image with annotations ("joined"), or per object ("alone"), in the order of the file's images.

    The file is read and checked here, masks are made while iterating. A broken mask is its sample's `error`. Raises
    DatasetError for a file that is missing or not of the format, with the record that is wrong.
    """
    path = Path(root) / "annotations" / f"{split}.json"
    images, annotations, categories = _tables(path)
    groups: dict[int, list[_Group]] = {}
    for row in annotations.values():
        _add(groups.setdefault(row["image_id"], []), row, categories)
    return _samples(images, groups, split, context)


def image_paths(root: str | Path, split: str) -> Iterator[str]:
    """The photos with annotations of a split, relative to `root`; DatasetError as of `read_own_coco`."""
    images, annotations, _ = _tables(Path(root) / "annotations" / f"{split}.json")
    used = {row["image_id"] for row in annotations.values()}
    yield from (_image_path(image) for image in images.values() if image["id"] in used)


@dataclass(kw_only=True, slots=True)
class _Group:
    """The annotations that are one object."""

    category: dict[str, Any]
    phrase: str
    own_phrase: bool
    rows: list[dict[str, Any]]


def _tables(path: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Images, annotations and categories by id, checked."""
    content = read_json(path, dict, SOURCE)
    images, annotations, categories = (
        by_id(records(content, key, path), fields, f"{path}: {key}")
        for key, fields in (
            ("images", {"id": int, "file_name": str, "height": int, "width": int}),
            ("annotations", {"id": int, "image_id": int, "category_id": int}),
            ("categories", {"id": int, "name": str}),
        )
    )
    for image in images.values():
        check_size(image["height"], image["width"], f"{path}: image {image['id']}")
    for category in categories.values():
        check_record({"isthing": 1} | category, {"isthing": (int, bool)}, f"{path}: category {category['id']}")
    for row in annotations.values():
        where = f"{path}: annotation {row['id']}"
        for key, table in (("image_id", images), ("category_id", categories)):
            if row[key] not in table:
                raise DatasetError(f"{where} has {key} {row[key]}, which is not in the file: add it")
        given: dict[str, Any] = {key: (str,) for key in ("phrase", "caption") if row.get(key) is not None}
        check_record(row, given | ({"iscrowd": (int, bool)} if "iscrowd" in row else {}), where)
    return images, annotations, categories


def _image_path(image: dict[str, Any]) -> str:
    return f"images/{image['file_name']}"


def _add(groups: list[_Group], row: dict[str, Any], categories: dict[int, dict[str, Any]]) -> None:
    category = categories[row["category_id"]]
    phrase = row.get("phrase") or row.get("caption") or ""
    if not phrase:
        for group in groups:
            if not group.own_phrase and group.category is category:
                group.rows.append(row)
                return
    name = phrase.strip() or category["name"]
    groups.append(_Group(category=category, phrase=name, own_phrase=bool(phrase), rows=[row]))


def _samples(
    images: dict[int, dict[str, Any]], groups: dict[int, list[_Group]], split: str, context: Context
) -> Iterator[Sample]:
    for image in images.values():
        found = groups.get(image["id"], [])
        # with the digest, images of one number in two folders have ids of their own: their caches can be merged
        name = f"{NAME}/{split}/{image['id']}-{digest([image, [[group.phrase, group.rows] for group in found]])}"
        for part in [found] if context == "joined" and found else [[group] for group in found]:
            yield _sample(name if context == "joined" else f"{name}-{part[0].rows[0]['id']}", name, image, part, split)


def _sample(sample_id: str, name: str, image: dict[str, Any], groups: list[_Group], split: str) -> Sample:
    objects: list[Object] = []
    faults: list[str] = []
    for group in groups:
        try:
            mask = _mask(group, image)
        except ValueError as fault:
            faults.append(f"annotation {group.rows[0]['id']} has a broken mask ({fault}): correct it in {split}.json")
            mask = empty(image["height"], image["width"])
        plural = len(group.rows) > 1 or bool(group.rows[0].get("iscrowd"))
        objects.append(
            Object(
                object_id=f"{name}/{group.rows[0]['id']}",
                mask=mask,
                is_thing=plural or bool(group.category.get("isthing", 1)),
                plural=plural,
                category=group.category["name"],
                phrase=group.phrase,
            )
        )
    pieces = [piece for k, item in enumerate(objects) for piece in (Piece(text=item.phrase, object=k), Piece(text="."))]
    return Sample(
        sample_id=sample_id,
        dataset=NAME,
        split=split,
        task="referring",
        image_id=str(image["id"]),
        image_path=_image_path(image),
        height=image["height"],
        width=image["width"],
        pieces=tuple(pieces),
        objects=tuple(objects),
        error=faults[0] if faults else None,
    )


def _mask(group: _Group, image: dict[str, Any]) -> Rle:
    """Raises ValueError where one of its annotations has no sound mask of the image's size."""
    size = [image["height"], image["width"]]
    masks = [from_segmentation(row.get("segmentation"), *size) for row in group.rows]
    if wrong := next((mask["size"] for mask in masks if mask["size"] != size), None):
        raise ValueError(f"it is {wrong}, the image {size} (height, width)")
    return masks[0] if len(masks) == 1 else union(masks)
