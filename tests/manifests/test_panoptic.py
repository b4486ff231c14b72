"""COCO panoptic as phrases: real records of two photos against panopticapi's definition; names of all categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests import panoptic, png
from manifests.build import build
from manifests.errors import DatasetError
from manifests.masks import area, decode
from manifests.panoptic import Segment, panoptic_ids, phrase, read_panoptic, readable
from manifests.refcoco import image_paths as refcoco_paths
from manifests.refcoco import read_refcoco
from manifests.schema import Sample, problem
from tests.manifests.test_png import NARRATIVES, put

LISTED = {"panoptic": "panoptic_examples.json", "image_dir": "input_images"}
REAL = {**LISTED, "panoptic_dir": "panoptic_examples"}


def read_real(real: Path) -> list[Sample]:
    return list(read_panoptic(real / "panopticapi", "val", **REAL))


def test_every_real_segment_but_crowds_is_an_object(real: Path) -> None:
    truth = json.loads((real / "panopticapi/panoptic_examples.json").read_text())
    names = {c["id"]: (c["name"], bool(c["isthing"])) for c in truth["categories"]}
    samples = read_real(real)
    assert [s.image_id for s in samples] == ["142238", "439180"]
    for sample, annotation in zip(samples, truth["annotations"], strict=True):
        infos = [info for info in annotation["segments_info"] if not info["iscrowd"]]
        assert len(infos) < len(annotation["segments_info"])  # each has a crowd
        with Image.open(real / "panopticapi/panoptic_examples" / annotation["file_name"]) as image:
            r, g, b = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
        assert len(sample.objects) == len(infos) and problem(sample) is None
        for item, info in zip(sample.objects, infos, strict=True):
            assert (item.category, item.is_thing) == names[info["category_id"]] and not item.plural
            assert np.array_equal(decode(item.mask), r + 256 * g + 65536 * b == info["id"])
            assert area(item.mask) == info["area"]
            assert item.object_id == f"coco-panoptic/val/{sample.image_id}/{info['id']}"
        assert [p.text for p in sample.pieces[::2]] == [item.phrase for item in sample.objects]
        assert [p.object for p in sample.pieces[::2]] == list(range(len(infos)))
        assert {(p.text, p.object) for p in sample.pieces[1::2]} == {(".", None)}
        with Image.open(real / "panopticapi" / sample.image_path) as photo:
            assert photo.size == (sample.width, sample.height)
    phrases = {item.phrase for item in samples[0].objects}
    assert phrases == {"a person", "a sports ball", "the tree", "the sky", "the grass"}


def test_names_of_all_real_categories(real: Path) -> None:
    rows = json.loads((real / "panopticapi/panoptic_coco_categories.json").read_text())
    said = {c["name"]: phrase(Segment(category=c["name"], is_thing=bool(c["isthing"]), crowd=False)) for c in rows}
    assert len(said) == 133
    assert all("-" not in text and "merged" not in text and "stuff" not in text for text in said.values())
    assert said["wall-other-merged"] == "the wall" and said["wall-brick"] == "the brick wall"
    assert said["elephant"] == "an elephant" and said["dog"] == "a dog" and said["umbrella"] == "an umbrella"
    assert said["scissors"] == "a pair of scissors" and said["playingfield"] == "the playing field"
    assert said["door-stuff"] == "the door" and said["window-blind"] == "the window blind"


@pytest.mark.parametrize(
    "category, text",
    [
        ("tree-merged", "tree"),
        ("floor-other-merged", "floor"),
        ("floor-wood", "wood floor"),
        ("hair drier", "hair drier"),
        ("mother-board", "mother board"),
        ("other", "other"),
        ("-", "-"),
        ("", ""),
    ],
)
def test_readable(category: str, text: str) -> None:
    assert readable(category) == text


def test_crowds_and_unknown_pixels(tmp_path: Path) -> None:
    infos = [
        {"id": 5, "category_id": 1, "iscrowd": 0},
        {"id": 70000, "category_id": 2},
        {"id": 6, "category_id": 1, "iscrowd": 1},
    ]
    (sample,) = read_panoptic(put(tmp_path, infos=infos), "val")
    assert [(p.text, p.object) for p in sample.pieces] == [("a cup", 0), (".", None), ("the sky", 1), (".", None)]
    assert (sample.task, sample.dataset, sample.image_path) == (
        "referring",
        "coco-panoptic",
        "val2017/000000000007.jpg",
    )
    infos = [{"id": 9, "category_id": 1}]
    assert problem(next(read_panoptic(put(tmp_path, infos=infos), "val"))) == (
        "the mask of object coco-panoptic/val/7/9 has no pixels: correct its annotation, or remove it"
    )
    assert "has no object to ground" in str(problem(next(read_panoptic(put(tmp_path, infos=[]), "val"))))


def test_a_png_of_absurd_size_is_not_decoded(tmp_path: Path) -> None:
    path = put(tmp_path) / "annotations/panoptic_val2017/000000000007.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    path.write_bytes(bytes(data))
    assert panoptic_ids(path) is None
    assert "can not be decoded" in str(next(read_panoptic(tmp_path, "val")).error)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"images": [{"id": 7, "file_name": "a", "height": 10**9, "width": 10**9}]},
            "image 7 is 10+x10+ pixels, more th",
        ),
        ({"images": [{"id": 7, "file_name": "a", "height": 0, "width": 4}]}, "image 7 is 0x4 pixels"),
        ({"infos": [{"id": 1 << 24, "category_id": 1}]}, "a png can not hold segment 16777216"),
        ({"infos": [{"id": -1, "category_id": 1}]}, "a png can not hold segment -1"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_panoptic(put(tmp_path, **changes), "val")


def test_ids_of_any_length_in_a_narrative(tmp_path: Path) -> None:
    for segment_id in ("9" * 10_000, "-1", "5.0"):
        segment = {"utterance": "a", "noun": True, "segment_ids": [segment_id]}
        with pytest.raises(DatasetError, match="are not whole numbers") as caught:
            png.read_png(put(tmp_path, segment), "val")
        assert len(str(caught.value)) < 1000


def test_missing_files_and_unknown_splits(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"panoptic_val2017.json is missing: get panoptic annotations and images from"
    ):
        read_panoptic(tmp_path, "val")
    with pytest.raises(DatasetError, match="COCO panoptic has no split 'test'; it has train, val"):
        read_panoptic(tmp_path, "test")


def test_light_listings_are_the_samples_images(scenes: Path, real: Path) -> None:
    for split in ("train", "val"):
        assert list(png.image_paths(scenes, split)) == [s.image_path for s in png.read_png(scenes, split)]
        assert list(panoptic.image_paths(scenes, split)) == [s.image_path for s in read_panoptic(scenes, split)]
    for split in ("train", "val", "testA"):
        listed = list(refcoco_paths(scenes, "refcoco", "unc", split))
        assert listed == [s.image_path for s in read_refcoco(scenes, "refcoco", "unc", split)]
    assert list(panoptic.image_paths(real / "panopticapi", "val", **LISTED)) == [s.image_path for s in read_real(real)]
    told = png.image_paths(real / "panopticapi", "val", narratives=NARRATIVES, **LISTED)
    assert list(told) == [
        s.image_path for s in png.read_png(real / "panopticapi", "val", narratives=NARRATIVES, **REAL)
    ]


def test_by_name_the_scenes_panoptic_files_are_read(scenes: Path) -> None:
    samples = build("coco-panoptic", scenes)
    assert {s.split for s in samples} == {"train", "val"} and all(problem(s) is None for s in samples)
    for sample in samples:  # every pixel of a scene is of one segment
        assert np.array_equal(
            sum(decode(item.mask).astype(int) for item in sample.objects), np.ones((sample.height, sample.width))
        )
