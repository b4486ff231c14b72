"""Scenes as ReasonSeg and GCG: drawn by the reader they are the scenes' masks, and images are those of other splits."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from manifests.build import build
from manifests.masks import decode, empty
from manifests.polygons import draw_polygon
from manifests.scenes.conversations import outlines
from manifests.scenes.lessons import question
from manifests.scenes.world import SPLIT_SEEDS, Scene, make_scene
from manifests.scenes.write import ScenesConfig, write_scenes
from manifests.schema import DEFAULT_PROMPT, Sample
from tests.manifests.scenes.meaning import denoted, singular


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, ScenesConfig(train=1, val=1, test_a=70, test_b=20, narratives=20, shifted=1, gcg_val=12))
    return root


def scene_of(sample: Sample) -> Scene:
    split, number = divmod(int(sample.image_id), 1_000_000)
    return make_scene(list(SPLIT_SEEDS)[split], number - 1)


def asked_about(scene: Scene, text: str) -> set[int]:
    """The things that a question asks about, understood from its words alone."""
    words = text.split()
    if text.startswith("what colour is "):
        return denoted(scene, " ".join(words[3:-1]))
    if text.startswith("where is "):
        return denoted(scene, " ".join(words[2:-1]))
    if text.startswith("how many "):
        return {i for i, thing in enumerate(scene.things) if thing.shape == singular(words[2])}
    if text.startswith("is there a "):
        return {i for i, thing in enumerate(scene.things) if thing.shape == words[3]}
    assert text.startswith("is the ") and text.endswith(" plain , striped or dotted ?")
    return denoted(scene, text.removeprefix("is ").removesuffix(" plain , striped or dotted ?"))


def test_questions_mean_their_masks(root: Path) -> None:
    samples = build("scenes-reasonseg", root)
    assert Counter(s.split for s in samples) == {"val": 60, "test": 20}
    ignored = absent = 0
    for sample in samples:
        scene, (item,) = scene_of(sample), sample.objects
        things = asked_about(scene, sample.prompt)
        mask = np.logical_or.reduce([np.zeros((scene.height, scene.width), bool), *map(scene.thing_mask, things)])
        assert np.array_equal(decode(item.mask), mask), sample.prompt
        assert sample.group == ("long" if sample.prompt.startswith(("where is ", "is the ")) else "short")
        absent += not things
        if item.ignore is not None:
            ignored += 1
            (other,) = [i for i in range(len(scene.things)) if np.array_equal(decode(item.ignore), scene.thing_mask(i))]
            assert other not in things
        assert sample.error is None
    assert 2 <= absent <= 16 and 4 <= ignored <= 24
    assert min(Counter(s.group for s in samples).values()) >= 20


def test_questions_and_answers_are_those_that_the_tiny_lmm_has_learned(root: Path) -> None:
    """The digest is of what `question` gave when the embedded weights were trained."""
    digest = hashlib.sha256()
    for k in range(300):
        asked = question(make_scene("pretrain", k), random.Random(k))
        digest.update(f"{asked.text}\n{asked.answer}".encode())
    assert digest.hexdigest()[:16] == "c2a075d71ca66b23"
    assert {s.prompt for s in build("scenes-gcg", root)} == {DEFAULT_PROMPT}


def test_captions_are_the_narratives_of_the_same_images(root: Path) -> None:
    narratives = {s.image_id.lstrip("0"): s for s in build("scenes-png", root, splits=["val"])}
    samples = build("scenes-gcg", root)
    assert len(samples) == 12
    for sample in samples:
        narrative = narratives[sample.image_id.lstrip("0")]
        assert [(o.phrase, o.mask) for o in sample.objects] == [(o.phrase, o.mask) for o in narrative.objects]
        assert " ".join(p.text for p in sample.pieces) == " ".join(p.text for p in narrative.pieces)
        assert (sample.height, sample.width) == (narrative.height, narrative.width)


def test_images_are_copies_of_those_of_other_splits(root: Path) -> None:
    def digests(name: str, split: str) -> list[bytes]:
        paths = [root / s.image_path for s in build(name, root, splits=[split])]
        return [hashlib.sha256(path.read_bytes()).digest() for path in paths]

    assert digests("scenes-reasonseg", "val") == digests("scenes-refcoco", "testA")[:60]
    assert digests("scenes-reasonseg", "test") == digests("scenes-refcoco", "testB")[:60]
    assert digests("scenes-gcg", "val") == digests("scenes-png", "val")[:12]


def test_official_tools_accept_the_files(root: Path) -> None:
    folder = root / "GranDf/annotations/val_test"
    masks, captions = COCO(folder / "val_gcg_coco_mask_gt.json"), COCO(folder / "val_gcg_coco_caption_gt.json")
    for image_id, (caption,) in captions.imgToAnns.items():
        assert isinstance(image_id, str) and len(caption["labels"]) == len(masks.imgToAnns[image_id])
        assert all(masks.annToMask(a).sum() == a["area"] and a["category_id"] == 1 for a in masks.imgToAnns[image_id])
    labels = Counter(
        shape["label"]
        for path in (root / "reason_seg/ReasonSeg").rglob("*.json")
        for shape in json.loads(path.read_bytes())["shapes"]
    )
    assert set(labels) == {"target", "ignore", "flag"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=7))
def test_outlines_drawn_are_the_mask(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    drawn = [draw_polygon([(x + 0.5, y + 0.5) for x, y in outline], *mask.shape) for outline in outlines(mask)]
    assert np.array_equal(np.sum([np.zeros(mask.shape, int), *drawn], axis=0), mask)  # and no pixel twice


def test_a_mask_without_pixels_has_no_outline() -> None:
    assert outlines(decode(empty(4, 5))) == []
