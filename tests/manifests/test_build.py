"""From a dataset's name to its samples: which splits, how many, and what is said when data or images are missing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from manifests.build import DATASETS, build, sources_of
from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.refcoco import read_refcoco
from manifests.scenes.write import ScenesConfig
from manifests.schema import problem
from tests.manifests.fuzzing import FORMATS, refcoco

EXPECTED = {
    ("scenes-refcoco", "train"): "train",
    ("scenes-refcoco", "val"): "val",
    ("scenes-refcoco", "testA"): "test_a",
    ("scenes-refcoco", "testB"): "test_b",
    ("scenes-png", "train"): "train",
    ("scenes-png", "val"): "narratives",
    ("shifted-refcoco", "testA"): "shifted",
    ("shifted-png", "val"): "shifted",
    ("scenes-reasonseg", "val"): "test_a",  # there are fewer scenes than questions are asked for
    ("scenes-reasonseg", "test"): "test_b",
    ("scenes-gcg", "val"): "narratives",
}
QUESTION = "is a question without an answer to ground: extract with --answer"


def counted(samples: list[Any]) -> Counter[tuple[str, str]]:
    return Counter((sample.dataset, sample.split) for sample in samples)


def test_scenes_hold_every_split_and_every_image_is_there(scenes: Path, config: ScenesConfig, tmp_path: Path) -> None:
    samples = build("scenes", scenes)
    assert counted(samples) == {key: getattr(config, field) for key, field in EXPECTED.items()}
    for s in samples:
        fault = problem(s)
        assert fault is None or (s.task == "reasoning" and fault.endswith(QUESTION))
    for sample in samples:
        with Image.open(scenes / sample.image_path) as image:
            assert image.size == (sample.width, sample.height)
    write_manifest(tmp_path / "m", samples, {})  # ids are unique over all parts
    assert list(Samples(tmp_path / "m")) == samples


def test_parts_by_name_are_the_parts_of_the_whole(scenes: Path) -> None:
    names = ["scenes-refcoco", "scenes-png", "shifted-refcoco", "shifted-png", "scenes-reasonseg", "scenes-gcg"]
    assert [s for name in names for s in build(name, scenes)] == build("scenes", scenes)


def test_splits_and_limit(scenes: Path) -> None:
    some = build("scenes", scenes, splits=("val", "testA"), limit=2)
    assert counted(some) == {key: 2 for key in EXPECTED if key[1] in ("val", "testA")}
    every = {s.sample_id: s for s in build("scenes", scenes)}
    assert all(every[s.sample_id] == s for s in some)
    firsts = {(s.dataset, s.split): s for s in reversed(list(every.values()))}
    assert all(firsts[s.dataset, s.split].sample_id in {x.sample_id for x in some} for s in some)


def test_sentences_and_context_reach_the_reader(scenes: Path) -> None:
    for options in ({"sentences": "all"}, {"context": "alone"}, {"sentences": "all", "context": "alone"}):
        built = build("scenes-refcoco", scenes, splits=["train"], **options)  # type: ignore[arg-type]
        direct = read_refcoco(scenes, "refcoco", "unc", "train", dataset_name="scenes-refcoco", **options)  # type: ignore[arg-type]
        assert built == list(direct)


@pytest.mark.parametrize(
    "name, dataset, split_by",
    [
        ("refcoco", "refcoco", "unc"),
        ("refcoco+", "refcoco+", "unc"),
        ("refcocog", "refcocog", "umd"),
        ("refcoco-google", "refcoco", "google"),
    ],
)
def test_official_names_read_the_real_records_of_all_splits(
    real: Path, tmp_path: Path, name: str, dataset: str, split_by: str
) -> None:
    (tmp_path / "refcoco").symlink_to(real / "refcoco_format")
    (tmp_path / "train2014").mkdir()
    for image in json.loads((tmp_path / "refcoco" / dataset / "instances.json").read_text())["images"]:
        (tmp_path / "train2014" / image["file_name"]).touch()
    samples = build(name, tmp_path)
    direct = [s for split in dict.fromkeys(s.split for s in samples) for s in
              read_refcoco(tmp_path, dataset, split_by, split, dataset_name=name)]  # fmt: skip
    assert samples == direct and {s.dataset for s in samples} == {name}  # what published numbers are looked up by
    assert all(s.sample_id.startswith(f"{dataset}-{split_by}/{s.split}/") for s in samples)
    assert len({s.split for s in samples}) == (4 if split_by == "unc" else 3)


@pytest.mark.parametrize("dataset", ["refcoco", "refcocog"])
def test_the_google_splits_are_datasets_of_their_own(tmp_path: Path, dataset: str) -> None:
    """Else their results stand beside the published numbers of the other splits."""
    refcoco(tmp_path)
    (tmp_path / "refcoco/refcoco").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "refcoco" / dataset)
    refs = tmp_path / "refcoco" / dataset / "refs(unc).p"
    refs.rename(refs.with_name("refs(google).p"))
    (sample,) = build(f"{dataset}-google", tmp_path, splits=["val"])
    assert sample.dataset == f"{dataset}-google" and sample.sample_id == f"{dataset}-google/val/7-joined-0"


@pytest.mark.parametrize("name", FORMATS)
def test_options_that_change_nothing_are_refused(tmp_path: Path, name: str) -> None:
    """Else results would be named after them."""
    FORMATS[name](tmp_path)
    taken = {"refcoco": {"sentences", "context"}, "reasonseg": {"sentences"}, "own-coco": {"context"}}.get(name, set())
    for option, value in (("sentences", "all"), ("context", "alone")):
        if option in taken:
            assert sources_of(name, tmp_path, **{option: value})  # type: ignore[arg-type]
        else:
            with pytest.raises(DatasetError, match=f"--{option} {value}: .*{name} .*leave --{option} out"):
                sources_of(name, tmp_path, **{option: value})  # type: ignore[arg-type]


def test_own_splits_come_from_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    mask = {"polygon": [1, 1, 5, 1, 5, 5]}
    lines = [{"image": "a.png", "split": s, "pieces": [{"text": "x", "mask": mask}]} for s in ("b", "a", "b")]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    named = lambda **options: [s.sample_id.partition("-")[0] for s in build("own", tmp_path, **options)]  # noqa: E731
    assert named() == ["own/b/1", "own/b/3", "own/a/2"]
    assert named(splits=["b"], limit=1) == ["own/b/1"]
    with pytest.raises(DatasetError, match="own has no split c; it has b, a"):
        build("own", tmp_path, splits=["c"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"dataset": "coco"}, "there is no dataset 'coco'; there are scenes, scenes-refcoco"),
        ({"splits": ["val", "dev"]}, "scenes has no split dev; it has train, val, testA, testB, test"),
        ({"limit": 0}, "limit must be at least 1 sample per split, got 0"),
        ({"root": "/nowhere/at/all"}, "the data root /nowhere/at/all is not a folder"),
    ],
)
def test_wrong_arguments(scenes: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        build(**{"dataset": "scenes", "root": scenes, **arguments})


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_an_empty_root_says_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DatasetError,
        match=r"is missing: get .*layout: |samples\.jsonl can not be read|layout: annotations/<split>\.json",
    ) as caught:
        build(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_image_folder_is_an_error_a_missing_image_is_not(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(scenes, root)
    images = sorted((root / "val2017").iterdir())
    for image in images[1:]:
        image.unlink()
    assert len(build("scenes-png", root, splits=["val"])) == len(images)
    images[0].unlink()
    with pytest.raises(DatasetError, match=rf"none of the {len(images)} images of scenes-png val is there, .*val2017"):
        build("scenes-png", root, splits=["val"])
