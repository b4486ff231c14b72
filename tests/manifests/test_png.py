"""PNG's reader: hand-written narratives of two real photos with their real panoptic truth, and broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.errors import DatasetError
from manifests.masks import decode, empty
from manifests.panoptic import panoptic_ids
from manifests.png import read_png
from manifests.schema import Sample, problem

NARRATIVES = Path(__file__).parents[1] / "data" / "panoptic_narratives.json"


def read_real(real: Path) -> list[Sample]:
    return list(
        read_png(
            real / "panopticapi",
            "val",
            narratives=NARRATIVES,
            panoptic="panoptic_examples.json",
            panoptic_dir="panoptic_examples",
            image_dir="input_images",
        )
    )


def test_real_photos(real: Path) -> None:
    told = json.loads(NARRATIVES.read_text())
    truth = json.loads((real / "panopticapi/panoptic_examples.json").read_text())
    things = {c["id"]: c["isthing"] for c in truth["categories"]}
    infos = {(a["image_id"], i["id"]): i for a in truth["annotations"] for i in a["segments_info"]}
    samples = read_real(real)
    assert [s.image_id for s in samples] == ["142238", "439180"]
    for sample, record in zip(samples, told, strict=True):
        with Image.open(real / "panopticapi/panoptic_examples" / f"{int(sample.image_id):012d}.png") as file:
            r, g, b = np.moveaxis(np.asarray(file.convert("RGB")).astype(int), -1, 0)
        with Image.open(real / "panopticapi" / sample.image_path) as photo:
            assert photo.size == (sample.width, sample.height)
        assert " ".join(p.text for p in sample.pieces) == record["caption"]
        assert problem(sample) is None
        for piece, segment in zip(sample.pieces, record["segments"], strict=True):
            assert piece.text == segment["utterance"] and (piece.object is not None) == bool(segment["segment_ids"])
            if piece.object is None:
                continue
            ids = [int(i) for i in segment["segment_ids"]]
            item = sample.objects[piece.object]
            mask = np.logical_or.reduce([(r + 256 * g + 65536 * b) == i for i in ids])
            assert np.array_equal(decode(item.mask), mask)
            assert mask.sum() == sum(infos[int(sample.image_id), i]["area"] for i in ids)
            kinds = {things[infos[int(sample.image_id), i]["category_id"]] for i in ids}
            assert item.plural == segment["plural"] and item.is_thing == (segment["plural"] or kinds == {1})
            assert item.phrase == piece.text


def test_real_categories_and_kinds(real: Path) -> None:
    rugby = {item.phrase: item for item in read_real(real)[0].objects}
    assert rugby["the ball"].category == "sports ball" and rugby["the ball"].is_thing
    assert rugby["the grass"].category == "grass-merged" and not rugby["the grass"].is_thing
    # plural stuff counts as thing, as PNG's metric has it
    assert rugby["trees"].category == "tree-merged" and rugby["trees"].is_thing and rugby["trees"].plural


# ---- small hand-written data: a 2 x 4 image with segments 5 (thing), 70000 (stuff), 6 (thing) and void --------------

IDS = np.array([[5, 5, 70000, 70000], [6, 0, 70000, 70000]])
CATEGORIES = [{"id": 1, "name": "cup", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
INFOS = [{"id": 5, "category_id": 1}, {"id": 70000, "category_id": 2}, {"id": 6, "category_id": 1}]


def said(text: str, *ids: str, **more: Any) -> dict[str, Any]:
    return {"utterance": text, "noun": bool(ids), "segment_ids": list(ids), **more}


def put(root: Path, *segments: Any, image_id: Any = "7", infos: Any = INFOS, png: bool = True, **tables: Any) -> Path:
    (root / "png").mkdir(parents=True, exist_ok=True)
    (root / "annotations/panoptic_val2017").mkdir(parents=True, exist_ok=True)
    narrative = {"image_id": image_id, "caption": "", "segments": list(segments)}
    (root / "png/png_coco_val2017.json").write_text(json.dumps([narrative, narrative]))
    panoptic = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 7, "file_name": "000000000007.png", "segments_info": infos}],
        "categories": CATEGORIES,
        **tables,
    }
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(panoptic))
    if png:
        rgb = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(root / "annotations/panoptic_val2017/000000000007.png")
    return root


def read(root: Path, **options: Any) -> list[Sample]:
    return list(read_png(root, "val", **options))


def test_panoptic_ids_use_all_three_bytes(tmp_path: Path) -> None:
    path = put(tmp_path) / "annotations/panoptic_val2017/000000000007.png"
    assert np.array_equal(panoptic_ids(path), IDS)
    path.write_bytes(path.read_bytes()[:60])
    assert panoptic_ids(path) is None and panoptic_ids(tmp_path / "absent.png") is None


def test_union_plural_and_pieces_as_they_stand(tmp_path: Path) -> None:
    root = put(
        tmp_path, said("Two cups", "5", "6"), said(", "), said("the sky", "70000"), said("skies", "70000", plural=True)
    )
    first, second = read(root)
    assert [p.text for p in first.pieces] == ["Two cups", ", ", "the sky", "skies"]
    assert [p.object for p in first.pieces] == [0, None, 1, 2]
    cups, sky, skies = first.objects
    assert np.array_equal(decode(cups.mask), (IDS == 5) | (IDS == 6))
    assert [(o.plural, o.is_thing) for o in first.objects] == [(True, True), (False, False), (True, True)]
    assert np.array_equal(decode(sky.mask), IDS == 70000) and sky.mask == skies.mask
    assert (first.sample_id, second.sample_id) == ("png/val/7-0", "png/val/7-1")
    assert first.image_path == "val2017/000000000007.jpg" and first.task == "narrative"


def test_the_files_plural_flag_decides_over_the_number_of_segments(tmp_path: Path) -> None:
    sample = read(put(tmp_path, said("a pair", "5", "6", plural=False), said("sky", "70000", "5", plural=False)))[0]
    assert [(o.plural, o.is_thing) for o in sample.objects] == [(False, True), (False, False)]


@pytest.mark.parametrize("image_id", ["7", 7, "000000000007"])
def test_image_id_as_text_or_number(tmp_path: Path, image_id: Any) -> None:
    assert read(put(tmp_path, said("a", "5"), image_id=image_id))[0].image_id == "7"


def test_unknown_segments_are_left_to_the_planner(tmp_path: Path) -> None:
    # 6 is in the png but not in the json, 8 in neither; 0 is "no segment" and never an object
    sample = read(put(tmp_path, said("a", "6"), said("b", "8"), said("c", "0"), said("d", "5", "8"), infos=INFOS[:2]))[
        0
    ]
    assert [int(decode(o.mask).sum()) for o in sample.objects] == [0, 0, 0, 2]
    assert problem(sample) == ("the mask of object png/val/7-0/0 has no pixels: correct its annotation, or remove it")


def test_a_png_that_can_not_be_used_is_the_reason_of_its_samples_alone(tmp_path: Path) -> None:
    png = tmp_path / "annotations/panoptic_val2017/000000000007.png"
    gone = "panoptic_val2017/000000000007.png is missing or can not be decoded: download it again"
    sample = read(put(tmp_path, said("a", "5"), png=False))[0]
    assert problem(sample) == sample.error == gone
    assert [(o.phrase, o.mask) for o in sample.objects] == [("a", empty(2, 4))]  # still there to be counted as a miss
    put(tmp_path, said("a", "5"))
    png.write_bytes(png.read_bytes()[:60])
    assert problem(read(tmp_path)[0]) == gone
    images = [{"id": 7, "file_name": "a.jpg", "height": 3, "width": 4}]
    assert problem(read(put(tmp_path, said("a", "5"), images=images))[0]) == (
        "panoptic_val2017/000000000007.png is 2x4 pixels (height x width), the panoptic json says 3x4: "
        "download both again"
    )
    assert problem(read(put(tmp_path, said("a", "5"), annotations=[]))[0]) == (
        "image 7 has no annotation in the panoptic json: download it again"
    )


@pytest.mark.parametrize(
    "segments, changes, words",
    [
        ([said("a", "5")], {"image_id": "8"}, r"narrative 0 is on image 8, which the panoptic json does not have"),
        ([said("a", "5")], {"image_id": "x\ny"}, r"narrative 0 is on image x y, which"),
        ([said("a", "five")], {}, r"narrative 0: segment ids \['five'\] are not whole numbers"),
        ([{"utterance": "a"}], {}, r"narrative 0, segment: a record has no proper segment_ids"),
        ([3], {}, r"narrative 0, segment: a record has no proper utterance, segment_ids"),
        ([said("a", "5")], {"infos": [{"id": 5, "category_id": 3}]}, "image 7, segments_info: there is no category 3"),
        ([said("a", "5")], {"infos": [{"id": 5}]}, "segments_info: a record has no proper category_id"),
        ([said("a", "5")], {"categories": 3}, r"panoptic_val2017\.json has no list 'categories'"),
        ([], {"images": [{"id": 7, "file_name": "../a", "height": 2, "width": 4}]}, "leaves the data root"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, segments: list[Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        read(put(tmp_path, *segments, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["png/png_coco_val2017.json", "annotations/panoptic_val2017.json"])
def test_missing_json(tmp_path: Path, name: str) -> None:
    (put(tmp_path) / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name} is missing: get .*bcv-uniandes.*layout: png/"):
        read_png(tmp_path, "val")  # at the call, before any iteration


def test_missing_png_folder_and_unknown_split(tmp_path: Path) -> None:
    (put(tmp_path, png=False) / "annotations/panoptic_val2017").rmdir()
    with pytest.raises(DatasetError, match="panoptic_val2017 of the panoptic pngs is missing: get"):
        read(tmp_path)
    with pytest.raises(DatasetError, match="no split 'test'; it has train, val"):
        read_png(tmp_path, "test")
