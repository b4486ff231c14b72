"""GCG's readers on hand-written files of each of the official formats, with the traps of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from manifests.build import build
from manifests.errors import DatasetError
from manifests.gcg import QUESTION, image_paths, read_gcg
from manifests.gcg_train import PARTS, read_gcg_train
from manifests.gcg_train import image_paths as train_paths
from manifests.masks import decode, empty, encode
from manifests.schema import Sample, problem

HEIGHT, WIDTH = 6, 8


def rect(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


DOG, CAT, GRASS = rect(0, 0, 2, 2), rect(1, 4, 3, 8), rect(4, 0, 6, 8)


def put(
    root: Path,
    caption: str,
    labels: Any,
    masks: Any,
    *,
    key: Any = "sa_1",
    size: bool = True,
    in_captions: Any = None,
    in_masks: Any = None,
) -> Path:
    """Both files of split val, with one image."""
    folder = root / "GranDf/annotations/val_test"
    folder.mkdir(parents=True, exist_ok=True)
    image = {"id": key, "height": HEIGHT, "width": WIDTH} if size else {"id": key}
    said = {"images": [image], "annotations": [{"id": 0, "image_id": key, "caption": caption, "labels": labels}]}
    shapes = [m if isinstance(m, (dict, list)) else encode(m) for m in masks]
    rows = [{"id": k, "image_id": key, "category_id": 1, "segmentation": shape} for k, shape in enumerate(shapes)]
    (folder / "val_gcg_coco_caption_gt.json").write_text(json.dumps({**said, **(in_captions or {})}))
    (folder / "val_gcg_coco_mask_gt.json").write_text(
        json.dumps({"images": [image], "annotations": rows, **(in_masks or {})})
    )
    return root


def read(root: Path, **options: Any) -> list[Sample]:
    return list(read_gcg(root, "val", **options))


def told(sample: Sample) -> list[tuple[str, int | None]]:
    return [(piece.text, piece.object) for piece in sample.pieces]


def test_a_sample(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, '" A dog looks at the cat."', ["A dog", "the cat"], [DOG, CAT]))
    assert (sample.sample_id, sample.dataset, sample.split, sample.task) == (
        "gcg/val/sa_1",
        "gcg",
        "val",
        "conversation",
    )
    assert (sample.image_id, sample.image_path) == ("sa_1", "GranDf_HA_images/val_test/sa_1.jpg")
    assert (sample.height, sample.width, sample.prompt) == (HEIGHT, WIDTH, QUESTION)
    assert told(sample) == [("A dog", 0), ("looks at", None), ("the cat", 1), (".", None)]
    assert [item.phrase for item in sample.objects] == ["A dog", "the cat"]
    assert all(np.array_equal(decode(o.mask), m) for o, m in zip(sample.objects, (DOG, CAT), strict=True))
    assert not any(item.plural for item in sample.objects) and problem(sample) is None
    assert read(tmp_path, prompt="And?", dataset_name="x")[0].prompt == "And?"
    assert list(image_paths(tmp_path, "val")) == [sample.image_path]


def test_label_k_has_mask_k_whatever_the_order_in_the_caption(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, "a dog and a cat", ["a cat", "a dog"], [CAT, DOG]))
    assert told(sample) == [("a dog", 0), ("and", None), ("a cat", 1)]
    assert np.array_equal(decode(sample.objects[0].mask), DOG) and np.array_equal(decode(sample.objects[1].mask), CAT)


def test_a_phrase_said_twice_and_one_with_several_masks(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, "a dog, and a dog", ["a dog", "a dog"], [DOG, CAT]))
    assert told(sample) == [("a dog", 0), (", and", None), ("a dog", 1)]
    (sample,) = read(put(tmp_path, "two dogs on grass", ["two dogs", "two dogs", "grass"], [DOG, CAT, GRASS]))
    assert told(sample) == [("two dogs", 0), ("on", None), ("grass", 1)]
    assert np.array_equal(decode(sample.objects[0].mask), DOG | CAT)
    assert [item.plural for item in sample.objects] == [True, False]


def test_labels_that_the_caption_does_not_have_are_said_after_it(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, "a dog.", ["a horse", "a dog", ""], [CAT, DOG, GRASS]))
    assert told(sample) == [("a dog", 0), (".", None), ("a horse", 1), ("object", 2)]
    assert np.array_equal(decode(sample.objects[1].mask), CAT) and problem(sample) is None


def test_the_size_is_the_records_else_the_masks_else_the_pictures(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, "a dog", ["a dog"], [DOG], size=False))
    assert (sample.height, sample.width) == (HEIGHT, WIDTH)
    polygon = [[0, 0, 2, 0, 2, 2, 0, 2]]
    put(tmp_path, "a dog", ["a dog"], [polygon], size=False)
    assert read(tmp_path)[0].error == "caption sa_1: sa_1.jpg is missing: put it there"
    (tmp_path / "GranDf_HA_images/val_test").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "GranDf_HA_images/val_test/sa_1.jpg")
    (sample,) = read(tmp_path)
    assert (sample.height, sample.width) == (HEIGHT, WIDTH) and np.array_equal(decode(sample.objects[0].mask), DOG)
    assert problem(sample) is None


def test_of_several_captions_the_first(tmp_path: Path) -> None:
    rows = [{"image_id": 7, "caption": text, "labels": ["a"]} for text in ("a b", "a c")]
    (sample,) = read(put(tmp_path, "", [], [DOG], key=7, in_captions={"annotations": rows}))
    assert told(sample) == [("a", 0), ("b", None)] and sample.image_id == "7"


RLE = encode(DOG)


@pytest.mark.parametrize(
    "caption, labels, masks, words, objects",
    [
        ("a dog", ["a dog"], [DOG, CAT], "caption sa_1: it has 1 labels and 2 masks: correct its annotation", 2),
        ("a dog", ["a dog", "dog"], [DOG], "it has 2 labels and 1 masks", 2),
        ("a dog", ["a dog"], [{**RLE, "counts": "x"}], r"the mask of 'a dog' is broken \(.*\): correct its ann", 1),
        ("a dog", ["a dog"], [{"size": [10**6, 10**6], "counts": "0"}], "the mask of 'a dog' is broken .*1000000x", 1),
        ("a dog", ["a dog"], [{"counts": []}], r"the mask of 'a dog' is broken \(an RLE's size is", 1),
        ("a dog", ["a dog"], [encode(rect(0, 0, 1, 1, (3, 3)))], r"is broken \(3x3 pixels, the image has 6x8\)", 1),
        ("a " * 10**6, ["a"], [DOG], "a text of it has 1999999 characters, 10000 are allowed: correct it", 1),
        ("a dog \ud800", ["a dog"], [DOG], "a text of it is not Unicode", 1),
        ("a dog", ["\ud800"], [DOG], "a text of it is not Unicode", 1),
        ("a dog", ["a dog"] * 1001, [DOG], "it has 1001 labels and 1 masks", 1001),
    ],
)
def test_a_broken_record_is_the_error_of_its_sample(
    tmp_path: Path, caption: str, labels: list[str], masks: list[Any], words: str, objects: int
) -> None:
    (sample,) = read(put(tmp_path, caption, labels, masks))
    assert re.search(words, str(problem(sample))), problem(sample)
    assert "\n" not in str(problem(sample)) and len(sample.objects) == objects
    json.dumps([p.text for p in sample.pieces], ensure_ascii=False).encode()  # can be written


def test_an_image_without_a_caption_or_of_absurd_size(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, "", [], [DOG, CAT], in_captions={"annotations": []}))
    assert sample.error == "caption sa_1: the image has none: download it again" and len(sample.objects) == 2
    images = [{"id": "sa_1", "height": 10**6, "width": 10**6}]
    (sample,) = read(put(tmp_path, "a dog", ["a dog"], [DOG], in_captions={"images": images}))
    assert str(sample.error).startswith("caption sa_1: its image is 1000000x1000000 pixels, more than the")
    assert sample.objects[0].mask == empty(1, 1)


@pytest.mark.parametrize(
    "tables, words",
    [
        ({"in_captions": {"images": 3}}, r"val_gcg_coco_caption_gt\.json has no list 'images'"),
        ({"in_captions": {"images": [{"id": None}]}}, "images: a record has no proper id"),
        ({"in_captions": {"annotations": [{"image_id": "a"}]}}, "annotations: a record has no proper caption, labels"),
        (
            {"in_captions": {"annotations": [{"image_id": "a", "caption": "", "labels": [3]}]}},
            "a label that is no text",
        ),
        ({"in_masks": {"annotations": [{"image_id": "a"}]}}, r"mask_gt\.json: annotations: .*no proper segmentation"),
        ({"in_captions": {"images": [{"id": "../../x"}]}}, "leaves the data root"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        read(put(tmp_path, "a dog", ["a dog"], [DOG], **tables))
    assert "\n" not in str(caught.value)


def test_missing_files_and_unknown_splits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"val_gcg_coco_caption_gt\.json is missing: get the ann.*layout: GranDf/"):
        read_gcg(tmp_path, "val")  # at the call, before any iteration
    with pytest.raises(DatasetError, match="no split 'train'; it has val, test"):
        read_gcg(tmp_path, "train")
    with pytest.raises(DatasetError, match="no training part 'vg'; it has human, psg, flickr, refcocog"):
        read_gcg_train(tmp_path, "vg")


# ---- the training files ------------------------------------------------------------------------------------------


def put_train(root: Path, part: str, content: Any) -> Path:
    path = root / "GranDf/annotations/train" / PARTS[part][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def grounded(caption: str, **groundings: tuple[list[int], list[np.ndarray]]) -> dict[str, Any]:
    found = {
        k: {"token_positives": span, "rle_masks": [encode(m) for m in masks]} for k, (span, masks) in groundings.items()
    }
    return {"file_name": "x.jpg", "image_id": "x", "caption": caption, "groundings": found}


@pytest.mark.parametrize("part, folder", [("human", "GranDf_HA_images/train"), ("psg", "train2017")])
def test_spans_and_masks_of_a_phrase(tmp_path: Path, part: str, folder: str) -> None:
    row = grounded('"two dogs on grass."', grass=([12, 17], [GRASS]), dogs=([0, 8], [DOG, CAT]))
    put_train(tmp_path, part, [row, row])
    sample, other = read_gcg_train(tmp_path, part)
    assert told(sample) == [("two dogs", 0), ("on", None), ("grass", 1), (".", None)]  # spans count inside the quotes
    assert np.array_equal(decode(sample.objects[0].mask), DOG | CAT) and sample.objects[0].plural
    assert (sample.image_path, sample.image_id, sample.split) == (f"{folder}/x.jpg", "x", "train")
    assert (sample.height, sample.width) == (HEIGHT, WIDTH) and problem(sample) is None
    assert sample.sample_id != other.sample_id  # an image can have several captions
    assert list(train_paths(tmp_path, part)) == [sample.image_path] * 2


def test_overlapping_spans(tmp_path: Path) -> None:
    row = grounded("a man in a red hat", outer=([0, 18], [DOG]), inner=([9, 18], [CAT]))
    (sample,) = read_gcg_train(put_train(tmp_path, "human", [row]), "human")
    assert told(sample) == [("a man in", 0), ("a red hat", 1)]


def test_refcocog_looks_for_its_sentences(tmp_path: Path) -> None:
    polygon = [[4, 1, 8, 1, 8, 3, 4, 3]]
    refs = [
        {"sentence": s, "segmentation": p}
        for s, p in (
            ("The Cat", polygon),
            ("a bird", polygon),
            ("a dog", [[0, 0, 2, 0, 2, 2, 0, 2], [0, 4, 8, 4, 8, 6, 0, 6]]),
        )
    ]
    row = {
        "img_file_name": "COCO_train2014_1.jpg",
        "caption": "A Dog sees the cat.",
        "refs": refs,
        "height": str(HEIGHT),
        "width": WIDTH,
    }
    (sample,) = read_gcg_train(put_train(tmp_path, "refcocog", [{"1": row}]), "refcocog")
    assert told(sample) == [("a dog", 0), ("sees", None), ("the cat", 1), (".", None)]  # "a bird" is left out
    truth = coco.decode(coco.merge(coco.frPyObjects(refs[2]["segmentation"], HEIGHT, WIDTH))).astype(bool)
    assert np.array_equal(decode(sample.objects[0].mask), truth) and not sample.objects[0].plural
    assert sample.image_path == "train2014/COCO_train2014_1.jpg"


def test_flickr_is_coco_with_captions(tmp_path: Path) -> None:
    size = {"height": 40, "width": 50}
    masks = [rect(0, 0, 9, 9, (40, 50)), rect(20, 20, 30, 30, (40, 50))]
    images = [
        {"id": 1, "file_name": "1.jpg", "caption": "two dogs on grass", **size},
        {"id": 2, "file_name": "1.jpg", "caption": "two dogs", **size},  # too few words
        {"id": 3, "file_name": "3.jpg", "caption": "a dog on grass", "height": 20, "width": 50},  # too small
    ]
    good = {"image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "tokens_positive": [[0, 8]]}
    rows = [
        {**good, "id": 1, "sam_mask": encode(masks[0])},
        {**good, "id": 2, "sam_mask": encode(masks[1])},
        {**good, "id": 3, "tokens_positive": [[12, 17]], "ignore": 1, "sam_mask": "x"},
        {**good, "id": 4, "tokens_positive": [[12, 17]], "bbox": [0, 0, 0.5, 9]},
        {**good, "id": 5, "tokens_positive": [[12, 17]], "area": 0},
    ]
    put_train(tmp_path, "flickr", {"images": images, "annotations": rows})
    (sample,) = read_gcg_train(tmp_path, "flickr")
    assert told(sample) == [("two dogs", 0), ("on grass", None)]
    assert np.array_equal(decode(sample.objects[0].mask), masks[0] | masks[1]) and sample.objects[0].plural
    assert sample.image_path == "flikcr_30k/train/1.jpg" and (sample.height, sample.width) == (40, 50)


NO_MASK: dict[str, Any] = {"token_positives": [0, 1], "rle_masks": []}
NO_BOX: dict[str, Any] = {"image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "tokens_positive": [[0, 1]]}


@pytest.mark.parametrize(
    "part, content, words",
    [
        ("human", {}, "holds a dict, not a list"),
        ("human", [3], "caption 0: a record has no proper file_name, caption, groundings"),
        ("human", [{**grounded("a"), "groundings": {"a": 3}}], "groundings: a record has no proper token_positives"),
        ("human", [{**grounded("a"), "groundings": {"a": {**NO_MASK, "token_positives": ["0"]}}}], "not \\[start"),
        ("refcocog", [[]], "caption 0: a record has no proper img_file_name, caption, refs"),
        ("refcocog", [{}], "caption 0: a record has no proper img_file_name"),
        ("refcocog", [{"1": {"img_file_name": "", "caption": "", "refs": [3]}}], "refs: a record has no proper sent"),
        ("flickr", [], "holds a list, not a dict"),
        ("flickr", {"images": []}, "has no list 'annotations'"),
        ("flickr", {"images": [], "annotations": [{"image_id": 1}]}, "no proper bbox, area, tokens_positive"),
        ("flickr", {"images": [], "annotations": [{**NO_BOX, "bbox": [1]}]}, "no proper bbox or tokens_positive"),
        ("flickr", {"images": [], "annotations": [{**NO_BOX, "tokens_positive": [[]]}]}, "is not \\[start"),
        ("flickr", {"images": [{"id": 1}], "annotations": []}, "images: a record has no proper file_name, caption"),
    ],
)  # fmt: skip
def test_broken_training_files_are_named(tmp_path: Path, part: str, content: Any, words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        list(read_gcg_train(put_train(tmp_path, part, content), part))
    assert "\n" not in str(caught.value)


def test_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a dog", ["a dog"], [DOG])
    put_train(tmp_path, "human", [grounded("a dog", dog=([0, 5], [DOG]))])
    for image in ("val_test/sa_1.jpg", "train/x.jpg"):
        path = tmp_path / "GranDf_HA_images" / image
        path.parent.mkdir(parents=True)
        path.touch()
    samples = build("gcg", tmp_path, splits=["train", "val"])
    assert [(s.split, told(s)) for s in samples] == [("train", [("a dog", 0)]), ("val", [("a dog", 0)])]
    put_train(tmp_path, "psg", [grounded("a dog", dog=([0, 5], [DOG]))])
    with pytest.raises(DatasetError, match=r"none of the 1 images of gcg-psg train is there, .*train2017/x.jpg: get"):
        build("gcg-psg", tmp_path)
