"""Shared images and decontamination against sets made by hand: two RefCOCO-like datasets and PNG on the same photos."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.build import DATASETS, build, sources_of
from manifests.errors import DatasetError
from manifests.overlap import Decontamination, found_images, image_key, is_training
from tests.manifests.fuzzing import POLYGON, put

SPLITS = {  # image ids
    ("refcoco", "unc", "train"): {1, 2, 3, 4},
    ("refcoco", "unc", "val"): {5},
    ("refcocog", "umd", "train"): {5, 6},
    ("refcocog", "umd", "val"): {2, 7},
    ("refcocog", "umd", "test"): {3},
}


def photo(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO (train twice on image 2), RefCOCOg, and PNG's train on images 1, 3 and 9."""
    for dataset, split_by in (("refcoco", "unc"), ("refcocog", "umd")):
        used = {(s, i) for (d, _, s), ids in SPLITS.items() if d == dataset for i in ids}
        images = [{"id": i, "file_name": photo(i), "height": 6, "width": 8} for i in sorted({i for _, i in used})]
        annotations = [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [POLYGON]} for i in sorted({i for _, i in used})
        ]
        refs = [
            {"ref_id": k, "ann_id": i, "image_id": i, "split": s, "sentences": [{"sent": "cup"}, {"sent": "mug"}]}
            for k, (s, i) in enumerate(sorted(used))
        ]
        tables = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
        put(tmp_path, f"refcoco/{dataset}/instances.json", tables)
        put(tmp_path, f"refcoco/{dataset}/refs({split_by}).p", pickle.dumps(refs, 2))
        for image in images:
            put(tmp_path, f"train2014/{image['file_name']}", np.zeros((6, 8, 3), np.uint8))
    panoptic: dict[str, Any] = {"annotations": [], "categories": []}
    panoptic["images"] = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 6, "width": 8} for i in (1, 3, 9)]
    put(tmp_path, "annotations/panoptic_train2017.json", panoptic)
    put(tmp_path, "png/png_coco_train2017.json", [{"image_id": str(i), "segments": []} for i in (1, 3, 9)])
    return tmp_path


def test_an_image_is_its_coco_id_or_its_path() -> None:
    same = ["train2014/COCO_train2014_000000000123.jpg", "val2017/000000000123.jpg", "000000000123.JPG"]
    same += ["a/b/COCO_val2014_000000000123.png"]
    assert {image_key("/r", path) for path in same} == {"coco/123"}
    assert image_key("/r", "x/sa_12.jpg") == image_key("/s", "y/sa_12.jpg") == "sa1b/12"
    others = ["photos/1000092795.jpg", "b/1000092795.jpg", "0000000000123.jpg", "x000000000123.jpg", "123.jpg"]
    assert image_key("/r", "photos/a.jpg") == image_key("/r", "./photos/a.jpg") == image_key("/r", "photos//./a.jpg")
    keys = {image_key(root, path) for path in others for root in ("/r", "/s")}
    assert len(keys) == 2 * len(others)


def test_the_matrix_is_that_of_the_sets(root: Path) -> None:
    found = found_images([root])
    expected = {(d, s): {f"coco/{i}" for i in ids} for (d, _, s), ids in SPLITS.items()}
    expected["png", "train"] = expected["coco-panoptic", "train"] = {"coco/1", "coco/3", "coco/9"}
    assert found.images == expected
    assert found.shared() == [[len(a & b) for b in found.images.values()] for a in found.images.values()]
    assert "png val" in found.absent and "own" in found.absent and "refcoco testA" in found.absent
    assert not {"refcoco train", "scenes-refcoco"} & found.absent.keys()


def test_several_roots_are_one_world_of_coco_and_two_of_paths(root: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    for place in (root, other):
        line = {"image": "a.jpg", "split": "train", "pieces": [{"text": "x"}]}
        put(place, "samples.jsonl", json.dumps(line).encode())
    found = found_images([root, other])
    assert len(found.images["own", "train"]) == 2 and len(found.images["refcoco", "train"]) == 4


@pytest.mark.parametrize("sentences, per_image", [("first", 1), ("all", 2)])
def test_training_without_what_is_tested_on(root: Path, sentences: Any, per_image: int) -> None:
    without = Decontamination(root)
    samples = build("refcoco", root, splits=("train", "val"), sentences=sentences, keep=without.keep)
    assert {(s.split, s.image_id) for s in samples} == {("train", "1"), ("train", "4"), ("val", "5")}
    assert without.report() == {
        "samples": 2 * per_image,
        "images": 2,
        "because": [
            {"dataset": "refcocog", "split": "val", "samples": per_image, "images": 1},
            {"dataset": "refcocog", "split": "test", "samples": per_image, "images": 1},
        ],
    }
    text = "\n".join(without.lines())
    assert f"dropped {2 * per_image} training samples of 2 images" in text
    assert "1 images are in refcocog val" in text and "png val" in text.split("not there to be looked at")[1]


def test_the_limit_counts_what_is_kept(root: Path) -> None:
    without = Decontamination(root)
    samples = build("refcoco", root, splits=["train"], limit=2, keep=without.keep)
    assert [s.image_id for s in samples] == ["1", "4"]


def test_what_counts_as_training() -> None:
    for split in ("train", "Train", "train2017", "instances_train", "instances_train2017"):
        assert is_training(split), split
    for split in ("val", "testA", "constrained", "untrained-test", "training-val", "train_val", "retrain", ""):
        assert not is_training(split), split


def test_a_damaged_evaluation_split_is_told_and_ends_training(root: Path) -> None:
    refs = root / "refcoco/refcocog/refs(umd).p"
    refs.write_bytes(refs.read_bytes()[:-20])
    found = found_images([root])
    assert "refcocog val" in found.broken and "refcocog val" not in found.absent
    assert "refcoco testA" in found.absent and "refcoco val" in {" ".join(split) for split in found.images}
    with pytest.raises(DatasetError, match=r"can not decontaminate: refcocog val .*refs\(umd\)\.p"):
        Decontamination(root)


@pytest.mark.parametrize("split, fails", [("train", False), ("val", True)])
def test_of_damaged_files_those_trained_on_do_no_harm(root: Path, split: str, fails: bool) -> None:
    put(root, f"annotations/panoptic_{split}2017.json", b"{")
    if fails:
        with pytest.raises(DatasetError, match=r"coco-panoptic val .*is not JSON"):
            Decontamination(root)
    else:
        text = "\n".join(Decontamination(root).lines())
        assert "png val" in text and "train" not in text.split("not there to be looked at")[1]


def test_damaged_lines_may_be_of_any_split(root: Path) -> None:
    put(root, "samples.jsonl", b"{")
    with pytest.raises(DatasetError, match=r"can not decontaminate: own .*line 1: not JSON"):
        Decontamination(root)


def test_official_files_of_other_formats_are_no_users(root: Path) -> None:
    (root / "images").mkdir()
    for name in ("captions_val2017", "panoptic_val2017", "image_info_test2017"):
        put(root, f"annotations/{name}.json", {"images": [], "annotations": [], "categories": []})
    found = found_images([root])
    assert not found.broken and "own-coco" in found.absent


def test_coco_annotations_are_not_taken_for_a_users(root: Path) -> None:
    put(root, "annotations/instances_val2017.json", {"images": [], "annotations": [], "categories": []})
    assert not any(dataset == "own-coco" for dataset, _ in found_images([root]).images)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        Decontamination(tmp_path / "no")


@pytest.mark.parametrize("name", [name for name in DATASETS if name.startswith(("scenes-", "shifted-"))])
def test_light_paths_are_those_of_the_samples(scenes: Path, name: str) -> None:
    for source in sources_of(name, scenes):
        assert list(source.images()) == list(dict.fromkeys(s.image_path for s in source.read()))
        assert all((scenes / file).exists() for file in source.files)
