"""RefCOCO's reader on real records (masks by pycocotools' own reader) and on records broken one at a time."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from manifests.errors import DatasetError
from manifests.masks import decode, empty
from manifests.refcoco import read_refcoco
from manifests.schema import Sample, problem

REAL_FILES = [
    ("refcoco", "unc"),
    ("refcoco", "google"),
    ("refcoco+", "unc"),
    ("refcocog", "umd"),
    ("refcocog", "google"),
]


def read(
    root: Path, dataset: str = "refcoco", split_by: str = "unc", split: str = "val", **options: Any
) -> list[Sample]:
    return list(read_refcoco(root, dataset, split_by, split, **options))


@pytest.mark.parametrize("dataset, split_by", REAL_FILES)
def test_every_real_ref_is_read_with_pycocotools_mask(real: Path, dataset: str, split_by: str) -> None:
    folder = real / "refcoco_format" / dataset
    refs = pickle.loads((folder / f"refs({split_by}).p").read_bytes())
    coco = COCO(folder / "instances.json")
    ids: set[str] = set()
    for split in {ref["split"] for ref in refs}:
        samples = read(real, dataset, split_by, split, annotation_dir="refcoco_format")
        wanted = [ref for ref in refs if ref["split"] == split]
        found = {item.object_id: (s, item) for s in samples for item in s.objects}
        assert len(found) == len(wanted) == sum(len(s.objects) for s in samples)
        for ref in wanted:
            sample, item = found[f"{dataset}-{split_by}/ref{ref['ref_id']}"]
            image = coco.imgs[ref["image_id"]]
            assert np.array_equal(decode(item.mask), coco.annToMask(coco.anns[ref["ann_id"]]))
            assert item.phrase == ref["sentences"][0]["sent"].lower().strip()
            assert item.category == coco.cats[ref["category_id"]]["name"]
            assert item.is_thing and not item.plural
            assert sample.image_path == f"train2014/{image['file_name']}" and sample.image_id == str(image["id"])
            assert (sample.height, sample.width) == (image["height"], image["width"])
            assert (sample.dataset, sample.split, sample.task) == (dataset, split, "referring")
        assert all(problem(s) is None for s in samples)
        ids |= {s.sample_id for s in samples}
        assert len({s.image_id for s in samples}) == len(samples)
    assert len(ids) == len({(ref["split"], ref["image_id"]) for ref in refs})


def test_joined_text_is_expression_dot_expression_dot(real: Path) -> None:
    samples = read(real, split="train", annotation_dir="refcoco_format")
    for sample in samples:
        assert [p.object for p in sample.pieces] == [v for i in range(len(sample.objects)) for v in (i, None)]
        assert [p.text for p in sample.pieces[::2]] == [item.phrase for item in sample.objects]
        assert {p.text for p in sample.pieces[1::2]} == {"."}


def test_all_sentences_joined_cycle_and_alone_are_each_once(real: Path) -> None:
    options = {"annotation_dir": "refcoco_format", "sentences": "all"}
    refs = [r for r in pickle.loads((real / "refcoco_format/refcoco/refs(unc).p").read_bytes()) if r["split"] == "val"]
    for ref in refs:
        own = [s["sent"] for s in ref["sentences"]]
        peers = [len(r["sentences"]) for r in refs if r["image_id"] == ref["image_id"]]
        joined = [s for s in read(real, **options) if s.image_id == str(ref["image_id"])]
        said = [o.phrase for s in joined for o in s.objects if o.object_id.endswith(f"ref{ref['ref_id']}")]
        assert said == [own[k % len(own)] for k in range(max(peers))]
        alone = [
            s for s in read(real, context="alone", **options) if s.objects[0].object_id.endswith(str(ref["ref_id"]))
        ]
        assert [s.pieces[0].text for s in alone] == own
        assert all([p.object for p in s.pieces] == [0, None] for s in alone)
    first = read(real, context="alone", annotation_dir="refcoco_format")
    assert [s.objects[0].phrase for s in first] == [r["sentences"][0]["sent"] for r in refs]


def test_first_is_a_subset_of_all_under_the_same_ids(scenes: Path) -> None:
    for context in ("joined", "alone"):
        first = {s.sample_id: s for s in read(scenes, split="train", context=context)}
        every = [s for s in read(scenes, split="train", context=context, sentences="all")]
        assert len({s.sample_id for s in every}) == len(every) > len(first)
        assert {s.sample_id: s for s in every if s.sample_id in first} == first


# ---- small hand-written data -------------------------------------------------------------------------------------

IMAGES = [
    {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8},
    {"id": 2, "file_name": "b.jpg", "height": 6, "width": 8},
]
SQUARE = [[2, 1, 7, 1, 7, 4, 2, 4]]
ANNOTATIONS = [
    {"id": 10, "image_id": 1, "category_id": 5, "segmentation": SQUARE},
    {"id": 11, "image_id": 2, "category_id": 5, "segmentation": {"size": [6, 8], "counts": [0, 6, 42]}},
]


def ref(ref_id: int, ann_id: int, image_id: int, *sents: str, split: str = "val") -> dict[str, Any]:
    sentences = [
        {"sent": sent, "raw": sent, "tokens": sent.split(), "sent_id": ref_id * 10 + k} for k, sent in enumerate(sents)
    ]
    return {
        "ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split,
        "sentences": sentences, "category_id": 5,
    }  # fmt: skip


REFS = [
    ref(1, 10, 1, " The Cup ", "mug"),
    ref(2, 11, 2, "column"),
    ref(3, 10, 1, "", "again the cup"),
    ref(4, 11, 2, "x", split="train"),
]


def put(root: Path, refs: Any = REFS, instances: Any = None, **tables: Any) -> Path:
    folder = root / "refcoco" / "refcoco"
    folder.mkdir(parents=True, exist_ok=True)
    official = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": [{"id": 5, "name": "cup"}], **tables}
    (folder / "instances.json").write_text(json.dumps(official if instances is None else instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def test_two_refs_of_one_annotation_are_two_objects_and_empty_text_is_left_to_the_planner(tmp_path: Path) -> None:
    first, second = read(put(tmp_path))
    assert [o.object_id for o in first.objects] == ["refcoco-unc/ref1", "refcoco-unc/ref3"]
    assert first.objects[0].mask == first.objects[1].mask
    assert [p.text for p in first.pieces] == ["the cup", ".", "", "."]
    assert problem(first) == "object refcoco-unc/ref3 has an empty text: give it words, or remove it"
    assert decode(second.objects[0].mask)[:, 0].all() and decode(second.objects[0].mask).sum() == 6


def test_a_ref_with_fewer_sentences_starts_again(tmp_path: Path) -> None:
    put(tmp_path, [ref(1, 10, 1, "a", "b"), ref(2, 10, 1, "x", "y", "z"), ref(3, 10, 1, "only")])
    said = [[item.phrase for item in sample.objects] for sample in read(tmp_path, sentences="all")]
    assert said == [["a", "x", "only"], ["b", "y", "only"], ["a", "z", "only"]]


def test_a_ref_without_sentences_is_yielded_with_empty_text(tmp_path: Path) -> None:
    for sentences in ("first", "all"):
        (sample,) = read(put(tmp_path, [ref(1, 10, 1)]), sentences=sentences)
        assert sample.pieces[0].text == "" and "object refcoco-unc/ref1 has an empty text" in str(problem(sample))


def test_names_and_folders_can_be_set(tmp_path: Path) -> None:
    sample = read(put(tmp_path), image_dir="sub/photos", dataset_name="mine")[0]
    assert sample.image_path == "sub/photos/a.jpg" and sample.dataset == "mine"
    assert sample.sample_id == "mine-unc/val/1-joined-0"


def broken(table: str, index: int, **changes: Any) -> dict[str, Any]:
    rows = copy.deepcopy({"images": IMAGES, "annotations": ANNOTATIONS, "refs": REFS}[table])
    rows[index].update(changes)
    return {table: [{k: v for k, v in row.items() if v is not ...} for row in rows]}


@pytest.mark.parametrize(
    "changes, words",
    [
        (broken("refs", 0, ann_id=99), r"refs\(unc\)\.p: ref 1 names annotation 99, .*instances\.json does not have"),
        (broken("refs", 0, image_id=99), r"ref 1 names image 99, .*instances\.json does not have it"),
        (broken("refs", 0, image_id=2), r"ref 1 names image 2, .*has its annotation on image 1"),
        (broken("refs", 0, ref_id=2), r"holds ref 2 twice"),
        (broken("refs", 0, sentences=...), r"ref: a record has no proper sentences"),
        (broken("refs", 0, sentences=[{"raw": "a"}]), r"ref 1, sentence: a record has no proper sent:"),
        (broken("refs", 0, split=...), "not a list of refs"),
        ({"refs": {"a": 1}}, "not a list of refs"),
        ({"refs": []}, "has no split 'val'; it has no refs at all"),
        ({"instances": [1]}, r"instances\.json holds a list, not a dict"),
        ({"images": {}}, r"instances\.json has no list 'images'"),
        (broken("images", 0, height="6"), r"images: a record has no proper height"),
        (broken("images", 0, height=-6), r"instances\.json: image 1 is -6x8 pixels \(height x width\): it is not the"),
        (broken("images", 0, height=10**9), r"image 1 is 1000000000x8 pixels, more than the \d+ that are allowed"),
        (broken("images", 0, file_name="../../x.jpg"), "leaves the data root"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words) as caught:
        read(put(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("segmentation", [..., [[1, 2, 3]], {"size": [6, 8], "counts": "o"}, [["x"]]])
def test_one_broken_mask_is_its_samples_error_and_the_others_are_read(tmp_path: Path, segmentation: Any) -> None:
    bad, good = read(put(tmp_path, **broken("annotations", 0, segmentation=segmentation)))
    assert re.fullmatch(
        r"refcoco-unc/ref1: annotation 10 has a broken mask \(.+\): correct it in instances\.json, or download .*",
        str(problem(bad)),
    )
    assert [(item.phrase, item.mask) for item in bad.objects] == [("the cup", empty(6, 8)), ("", empty(6, 8))]
    assert problem(good) is None and good == read(put(tmp_path))[1]


def test_missing_files_say_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p is missing: get .*lichengunc/refer.*layout: refcoco/"):
        read_refcoco(tmp_path, "refcoco", "unc", "val")  # at the call, before any iteration
    put(tmp_path)
    instances = tmp_path / "refcoco/refcoco/instances.json"
    instances.write_text("{")
    with pytest.raises(DatasetError, match=r"instances\.json is not JSON"):
        read(tmp_path)
    instances.unlink()
    with pytest.raises(DatasetError, match=r"instances\.json is missing: get .*cocodataset"):
        read(tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"split": "testC"}, r"no split 'testC'; it has train, val"),
        ({"dataset": "refclef"}, r"no 'refclef' split by 'unc'; there are refcoco: unc, google; refcoco\+: unc"),
        ({"split_by": "umd"}, r"no 'refcoco' split by 'umd'"),
        ({"sentences": "last"}, "sentences is first or all"),
        ({"context": "both"}, "context joined or alone"),
    ],
)
def test_unknown_choices_list_what_there_is(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read(put(tmp_path), **options)
