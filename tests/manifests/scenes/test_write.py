"""The written files: read back by other people's code where there is some, equal to the scenes bit for bit."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from manifests.build import build
from manifests.errors import DatasetError
from manifests.masks import decode
from manifests.scenes import official
from manifests.scenes.world import SPLIT_SEEDS, Scene, make_scene
from manifests.scenes.write import GENERATOR_VERSION, ScenesConfig, write_scenes
from manifests.schema import Sample
from tests.manifests.scenes.meaning import denoted

SMALL = ScenesConfig(train=2, val=1, test_a=1, test_b=1, narratives=1, shifted=1)
REF_KEYS = {"sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id"}


def scene_of(sample: Sample) -> Scene:
    """The scene of a sample: the millions of the image id number the world's splits, the rest counts from 1."""
    split, number = divmod(int(sample.image_id), 1_000_000)
    return make_scene(list(SPLIT_SEEDS)[split], number - 1)


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["scenes-refcoco", "shifted-refcoco"])
def test_refcoco_masks_and_expressions(scenes: Path, name: str) -> None:
    samples = build(name, scenes, sentences="all")
    assert samples
    for sample in samples:
        scene = scene_of(sample)
        targets = []
        for item in sample.objects:
            (target,) = denoted(scene, item.phrase)
            assert np.array_equal(decode(item.mask), scene.thing_mask(target))
            assert item.category == scene.things[target].shape
            targets.append(target)
        assert len(set(targets)) == len(targets) <= 4


@pytest.mark.parametrize("name", ["scenes-png", "shifted-png"])
def test_narratives_masks_and_phrases(scenes: Path, name: str) -> None:
    for sample in build(name, scenes):
        scene = scene_of(sample)
        for item in sample.objects:
            mask, words = decode(item.mask), item.phrase.split()
            if item.category in scene.stuff:
                assert words == ["the", item.category] and not item.is_thing
                assert np.array_equal(mask, scene.stuff_mask(scene.stuff.index(item.category)))
            elif item.plural:
                same = [i for i in range(len(scene.things)) if mask[scene.thing_mask(i)].all()]
                assert len(same) == ["two", "three", "four", "five"].index(words[0]) + 2 and item.is_thing
                assert np.array_equal(mask, np.logical_or.reduce([scene.thing_mask(i) for i in same]))
            else:
                (target,) = denoted(scene, item.phrase)
                assert np.array_equal(mask, scene.thing_mask(target)) and item.is_thing


def test_images_are_the_scenes(scenes: Path) -> None:
    for sample in build("scenes", scenes):
        scene = scene_of(sample)
        with Image.open(scenes / sample.image_path) as image:
            pixels = np.asarray(image).astype(int)
        assert pixels.shape == scene.image.shape and np.abs(pixels - scene.image).mean() < 3


def test_official_readers_accept_the_files(scenes: Path) -> None:
    for root in (scenes, scenes / "shifted"):
        coco = COCO(root / "refcoco/refcoco/instances.json")
        refs = pickle.loads((root / "refcoco/refcoco/refs(unc).p").read_bytes())
        assert (root / "refcoco/refcoco/refs(unc).p").read_bytes()[:2] == b"\x80\x02"
        assert len({r["ref_id"] for r in refs}) == len(refs)
        assert len({s["sent_id"] for r in refs for s in r["sentences"]}) == sum(len(r["sentences"]) for r in refs)
        for ref in refs:
            annotation = coco.anns[ref["ann_id"]]
            assert set(ref) == REF_KEYS and ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
            assert all(set(s) == {"tokens", "raw", "sent_id", "sent"} for s in ref["sentences"])
            assert annotation["image_id"] == ref["image_id"] and annotation["category_id"] == ref["category_id"]
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            ys, xs = np.nonzero(mask)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_panoptic_files_agree_with_each_other(scenes: Path) -> None:
    for root, split in ((scenes, "train"), (scenes, "val"), (scenes / "shifted", "val")):
        content = json.loads((root / f"annotations/panoptic_{split}2017.json").read_text())
        for annotation in content["annotations"]:
            with Image.open(root / f"annotations/panoptic_{split}2017" / annotation["file_name"]) as image:
                r, g, b = np.moveaxis(np.asarray(image).astype(int), -1, 0)
            ids, counts = np.unique(r + 256 * g + 65536 * b, return_counts=True)
            infos = {info["id"]: info["area"] for info in annotation["segments_info"]}
            assert infos == dict(zip(ids.tolist(), counts.tolist(), strict=True))
            assert max(infos) > 65536


def test_train_narratives_are_on_the_train_images_and_test_images_on_no_train_image(scenes: Path) -> None:
    images: dict[tuple[str, str], set[bytes]] = {}
    for s in build("scenes", scenes):
        digest = hashlib.sha256((scenes / s.image_path).read_bytes()).digest()
        images.setdefault((s.dataset, s.split), set()).add(digest)
    train = images.pop(("scenes-refcoco", "train"))
    assert images.pop(("scenes-png", "train")) == train
    assert images.pop(("shifted-refcoco", "testA")) == images[("shifted-png", "val")]
    # questions and captions are about images of other test splits
    assert images.pop(("scenes-reasonseg", "val")) <= images[("scenes-refcoco", "testA")]
    assert images.pop(("scenes-reasonseg", "test")) <= images[("scenes-refcoco", "testB")]
    assert images.pop(("scenes-gcg", "val")) <= images[("scenes-png", "val")]
    rest = [digest for found in images.values() for digest in found]
    assert len(set(rest)) == len(rest) and not train & set(rest)


def test_a_second_call_changes_nothing_and_another_folder_gets_the_same_bytes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    write_scenes(tmp_path / "a", SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    (tmp_path / "b").mkdir()  # an empty folder is taken
    write_scenes(tmp_path / "b", SMALL)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_larger_config_only_adds(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", SMALL)
    write_scenes(tmp_path / "b", replace(SMALL, train=3, val=2))
    small, large = ({s.sample_id: s for s in build("scenes", tmp_path / name)} for name in "ab")
    assert small.items() <= large.items() and len(large) == len(small) + 3
    images = {name: data for name, data in tree(tmp_path / "a").items() if name.endswith((".jpg", ".png"))}
    assert images.items() <= tree(tmp_path / "b").items()


def test_other_scenes_other_versions_and_changed_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a"
    write_scenes(root, SMALL)
    with pytest.raises(DatasetError, match=r"holds other scenes \(val 1 there, 2 asked\): delete the folder"):
        write_scenes(root, replace(SMALL, val=2))
    with monkeypatch.context() as patch:
        patch.setattr("manifests.scenes.write.GENERATOR_VERSION", GENERATOR_VERSION + 1)
        with pytest.raises(DatasetError, match=rf"version {GENERATOR_VERSION} there, {GENERATOR_VERSION + 1} asked"):
            write_scenes(root, SMALL)
    refs = root / "refcoco/refcoco/refs(unc).p"
    refs.write_bytes(refs.read_bytes() + b" ")
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p is missing or was changed: delete the folder"):
        write_scenes(root, SMALL)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty and holds no scenes: give another folder"):
        write_scenes(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_crash_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(official.PngFiles, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "a", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_was_faster_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write_scenes(target, SMALL)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    write_scenes(tmp_path / "a", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and build("scenes", tmp_path / "a")


@pytest.mark.parametrize("field, value", [("train", 0), ("shifted", -1), ("jpeg_quality", 101), ("val", 1_000_000)])
def test_config_ranges(field: str, value: int) -> None:
    with pytest.raises(DatasetError, match=rf"{field} must lie in \[1, \d+\], got {value}"):
        ScenesConfig(**{field: value})


NEW_IN_6 = ("reason_seg", "GranDf")


def test_the_generator_version_is_raised_when_scenes_or_texts_change(tmp_path: Path) -> None:
    """Texts, masks and ids of a few scenes. Where this fails: raise GENERATOR_VERSION, then put the new digest here.

    Version 6 added ReasonSeg and GCG files; all others are those of version 5, whose digest is the first.
    """
    root = tmp_path / "a"
    write_scenes(root, SMALL)
    old, new = hashlib.sha256(), hashlib.sha256()
    for path in sorted(root.rglob("*.json")) + sorted(root.rglob("*.p")):
        if path.name != "scenes.json":
            content = pickle.loads(path.read_bytes()) if path.suffix == ".p" else json.loads(path.read_bytes())
            digest = new if path.relative_to(root).parts[0] in NEW_IN_6 else old
            digest.update(json.dumps(content, sort_keys=True).encode())
    assert (old.hexdigest()[:16], new.hexdigest()[:16], GENERATOR_VERSION) == (
        "475f554558d379aa",
        "eeb0cf15163ecb2c",
        6,
    )
