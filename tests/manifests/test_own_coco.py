"""Users' plain COCO files: masks as pycocotools reads them, names and phrases, crowds, a line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from manifests.build import build
from manifests.errors import DatasetError
from manifests.masks import decode, encode
from manifests.own_coco import image_paths, read_own_coco, split_names
from manifests.schema import problem

SQUARE, CORNER = [[2, 1, 7, 1, 7, 4, 2, 4]], [[0, 3, 3, 3, 3, 6, 0, 6]]
FULL = dict(encode(np.ones((6, 8), bool)))
IMAGES = [{"id": k, "file_name": f"{k}.png", "height": 6, "width": 8} for k in (1, 2, 3)]
CATEGORIES = [{"id": 5, "name": "cup"}, {"id": 6, "name": "sky", "isthing": 0}]


def note(number: int, shape: Any, category: int = 5, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": shape, **more}


def put(root: Path, *annotations: Any, split: str = "val", **tables: Any) -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    content = {"images": IMAGES, "annotations": list(annotations), "categories": CATEGORIES} | tables
    (root / f"annotations/{split}.json").write_text(json.dumps(content))
    for image in IMAGES:
        Image.new("RGB", (8, 6)).save(root / f"images/{image['file_name']}")
    return root


def test_phrases_are_objects_and_names_are_kinds(tmp_path: Path) -> None:
    put(
        tmp_path,
        note(1, SQUARE, phrase=" the left cup "),
        note(2, CORNER),
        note(3, FULL, category=6),
        note(4, SQUARE),
        note(5, CORNER, caption="a mug", phrase=None),
        note(6, SQUARE, image=3, iscrowd=1),
    )
    first, last = read_own_coco(tmp_path, "val")
    assert [o.phrase for o in first.objects] == ["the left cup", "cup", "sky", "a mug"]
    assert [(o.plural, o.is_thing) for o in first.objects] == [
        (False, True), (True, True), (False, False), (False, True),
    ]  # fmt: skip
    coco = COCO(tmp_path / "annotations/val.json")
    both = coco.annToMask(coco.anns[2]) | coco.annToMask(coco.anns[4])
    for item, mask in zip(first.objects, (coco.annToMask(coco.anns[1]), both), strict=False):
        assert np.array_equal(decode(item.mask), mask.astype(bool))
    assert [p.text for p in first.pieces[:4]] == ["the left cup", ".", "cup", "."]
    assert (last.image_path, last.sample_id, last.task) == (
        "images/3.png",
        f"own-coco/val/3-{last.sample_id[-8:]}",
        "referring",
    )
    assert last.objects[0].plural and problem(first) is problem(last) is None
    assert list(image_paths(tmp_path, "val")) == ["images/1.png", "images/3.png"]


def test_alone_every_object_is_a_sample(tmp_path: Path) -> None:
    put(tmp_path, note(1, SQUARE, phrase="a"), note(2, CORNER, phrase="b"))
    samples = list(read_own_coco(tmp_path, "val", context="alone"))
    assert [[p.text for p in s.pieces] for s in samples] == [["a", "."], ["b", "."]]
    assert len({s.sample_id for s in samples}) == 2


def test_splits_are_files(tmp_path: Path) -> None:
    put(put(tmp_path, note(1, SQUARE), split="val"), note(1, SQUARE), note(2, SQUARE, image=2), split="train")
    assert split_names(tmp_path) == ["train", "val"]
    assert [s.sample_id.rpartition("-")[0] for s in build("own-coco", tmp_path)] == [
        "own-coco/train/1", "own-coco/train/2", "own-coco/val/1",
    ]  # fmt: skip


def test_ids_of_two_folders_differ(tmp_path: Path) -> None:
    found = []
    for phrase in ("a cup", "a mug"):
        put(tmp_path, note(1, SQUARE, phrase=phrase))
        (joined,), (alone,) = (read_own_coco(tmp_path, "val", context=context) for context in ("joined", "alone"))
        assert joined.objects == alone.objects
        found += [joined.sample_id, alone.sample_id, joined.objects[0].object_id]
    assert len(set(found)) == 6


@pytest.mark.parametrize(
    "annotation, changes, words",
    [
        (note(1, SQUARE, image=9), {}, "annotation 1 has image_id 9, which is not in the file: add it"),
        (note(1, SQUARE, category=9), {}, "annotation 1 has category_id 9"),
        (note(1, SQUARE, phrase=3), {}, "annotation 1: a record has no proper phrase"),
        (note(1, SQUARE, iscrowd="no"), {}, "no proper iscrowd"),
        ({"id": 1}, {}, "annotations: a record has no proper image_id, category_id"),
        (note(1, SQUARE), {"images": [IMAGES[0] | {"height": 0}]}, "image 1 is 0x8 pixels"),
        (
            note(1, SQUARE),
            {"categories": [CATEGORIES[0] | {"isthing": "no"}]},
            "category .: a record has no proper isthing",
        ),
        (note(1, SQUARE), {"categories": None}, "no list 'categories'"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, annotation: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        list(read_own_coco(put(tmp_path, annotation, **changes), "val"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape, words",
    [([[1, 2]], "has no pixels"), (None, "broken mask"), ({"size": [2, 2], "counts": [4]}, "the image [6, 8]")],
)
def test_a_broken_mask_is_its_samples_error(tmp_path: Path, shape: Any, words: str) -> None:
    bad, good = read_own_coco(put(tmp_path, note(1, shape), note(2, SQUARE, image=2)), "val")
    assert words in str(problem(bad)) and problem(good) is None
