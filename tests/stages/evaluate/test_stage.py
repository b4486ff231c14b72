"""The evaluate stage end to end, with failed samples, another cache's head, and real and user-made data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.priors import Priors
from manifests.build import build
from manifests.errors import DatasetError
from stages.evaluate.results import ObjectTable
from stages.evaluate.scoring import held_out
from tests.helpers import cli, tree


def test_metrics_report_and_pictures(
    small_cache: Path, small_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("evaluate", "--cache", small_cache, "--head", small_head, "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = {}
    for row in metrics["results"]:
        found.setdefault(row["protocol"], set()).add((row["dataset"], row["split"]))
    expressions = {("scenes-refcoco", split) for split in ("val", "testA", "testB")} | {("shifted-refcoco", "testA")}
    captions = {("scenes-png", "val"), ("shifted-png", "val")}
    gcg = {("scenes-gcg", "val")}
    questions = {("scenes-reasonseg", split) for split in ("val", "test")}
    assert found == {
        "res-flmm": expressions, "png": captions, "keywords": captions, "reasonseg": questions, "gcg": gcg,
        "gcg-strict": gcg,
    }  # fmt: skip
    methods = {row["method"] for row in metrics["results"] if row["protocol"] == "keywords"}
    assert {"selector λ=0.3", "selector λ=0.95", "lexicon", "every noun phrase"} <= methods
    priors = Priors.open(small_cache)
    held = [s for s in priors.samples if s.split != "train"]
    objects = ObjectTable(tmp_path / "objects.parquet")
    assert len(objects) == sum(len(s.objects) for s in held if s.task != "conversation")
    assert metrics["run"]["objects"] == len(objects) and metrics["run"]["samples"] == len(held)
    stored = sum(path.stat().st_size for path in (small_cache / "priors.zarr").rglob("c.*"))
    each = stored / priors.objects()
    assert metrics["run"]["bytes per object"] == pytest.approx(each, abs=0.1)
    printed = capsys.readouterr().out
    assert f"{each:,.0f} bytes/object (+ " in printed and "sheet.png" in printed
    assert json.loads(printed.splitlines()[-1])["objects"] == len(objects)
    assert metrics["run"]["lam"] == 0.3 and metrics["failures"] == {}
    assert metrics["text_models"]["similarity"] == {"name": "token_f1"}
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_the_same_twice_and_for_any_number_of_workers(small_cache: Path, small_head: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    options = ("--cache", small_cache, "--head", small_head, "--out", tmp_path / "out", "--batch-size", "2")
    files = []
    for workers in (1, 1, 2):
        cli("evaluate", *options, "--workers", workers, "--no-captions")
        files.append(tree(tmp_path / "out"))
    assert files[0] == files[1]
    # threads of a worker decide how sums are rounded; of what is counted nothing may be lost or out of order
    one, two = (json.loads(each["metrics.json"])["results"] for each in files[1:])
    counts = ("protocol", "dataset", "split", "method", "group", "metric", "images", "items", "failed")
    assert [[row[name] for name in counts] for row in one] == [[row[name] for name in counts] for row in two]
    for a, b in zip(one, two, strict=True):
        assert (a["value"] is None) == (b["value"] is None)
        assert a["value"] is None or a["value"]["value"] == pytest.approx(b["value"]["value"], abs=0.02)


def test_a_head_of_other_priors_is_refused(
    small_cache: Path, small_head: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "max"
    cli("extract", "--data-root", data_root, "--cache", other, "--images", small_cache / "images", "--local",
        "--merge", "max", "--limit", "2", "--dataset", "scenes-refcoco")  # fmt: skip
    cli("evaluate", "--cache", other, "--head", small_head, "--out", tmp_path / "out", expect=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "merge" in error and "mean" in error and "max" in error
    assert not (tmp_path / "out").exists()


def test_a_head_without_a_refiner_and_images_that_are_gone(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head"
    cli("train-head", "--cache", small_cache, "--out", head, "--epochs", "1", "--no-refiner")
    cli("evaluate", "--cache", small_cache, "--head", head, "--out", tmp_path / "out", "--splits", "testA")
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert {row["method"] for row in results} == {"coarse"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Predicted mask" in page and "Refined mask" not in page and "Coarse mask" not in page
    capsys.readouterr()
    cli("evaluate", "--cache", small_cache, "--head", head, "--out", tmp_path / "out", "--splits", "testA",
        "--data-root", tmp_path / "gone")  # fmt: skip
    printed = capsys.readouterr().out
    assert "no pictures" in printed and "None" not in printed and "per image" not in printed


def test_a_foreign_out_folder_is_refused_and_stays_as_it_is(
    small_cache: Path, small_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr("stages.evaluate.worker.run_head", None)  # refused before the work
    (tmp_path / "metrics.json").write_text('{"schema": 2, "accuracy": 1}')
    (tmp_path / "sheet.png").write_text("mine")
    before = tree(tmp_path)
    cli("evaluate", "--cache", small_cache, "--head", small_head, "--out", tmp_path, expect=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds no evaluation of this program (but metrics.json, sheet.png)" in error and "empty it" in error
    assert tree(tmp_path) == before


def test_an_unknown_split_is_named_with_those_that_exist(small_cache: Path) -> None:
    priors = Priors.open(small_cache)
    with pytest.raises(DatasetError, match=r"--splits nope: .* its splits are train, val, testA, testB, test$"):
        held_out(priors, ["testA", "nope"])
    assert {priors.samples[i].split for i in held_out(priors, ["testA"])} == {"testA"}


def test_the_shared_image_cache_was_used_again(small_cache: Path, data_root: Path, tmp_path: Path) -> None:
    images = small_cache / "images"
    before = sorted((p, p.stat().st_mtime_ns) for p in images.rglob("c.*"))
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "again", "--images", images, "--local",
        "--dataset", "scenes-png", "--limit", "2")  # fmt: skip
    assert sorted((p, p.stat().st_mtime_ns) for p in images.rglob("c.*")) == before
    assert Priors.open(tmp_path / "again").embedding(0).shape == (64, 16, 16)


def test_users_own_photos_and_masks(small_head: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 160, 3), np.uint8)).save(root / "a.jpg")
    mask = np.zeros((90, 160), np.uint8)
    mask[20:60, 30:90] = 255
    Image.fromarray(mask).save(root / "a_dog.png")
    line = {
        "image": "a.jpg", "split": "test", "task": "narrative",
        "pieces": [{"text": "a dog", "mask": "a_dog.png"}, {"text": "sits there .", "mask": None}],
    }  # fmt: skip
    (root / "samples.jsonl").write_text(json.dumps(line) + "\n")
    cache = tmp_path / "cache"
    cli("extract", "--dataset", "own", "--data-root", root, "--cache", cache, "--local")
    cli("evaluate", "--cache", cache, "--head", small_head, "--out", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row["items"] for row in metrics["results"] if (row["protocol"], row["group"]) == ("png", "all")} == {1}
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 10_000


def test_a_failed_caption_of_the_lmm_is_a_miss_of_gcg_alone(data_root: Path, small_head: Path, tmp_path: Path) -> None:
    """Its image is gone before it could be asked; what its protocol misses no other one counts."""
    root, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(data_root, root)
    samples = build("scenes-gcg", root)
    (root / samples[0].image_path).unlink()
    cli("extract", "--dataset", "scenes-gcg", "--data-root", root, "--cache", cache, "--local")
    assert Priors.open(cache).samples.searched().all()
    cli("evaluate", "--cache", cache, "--head", small_head, "--out", tmp_path / "out", "--no-captions")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row["protocol"] for row in metrics["results"]} == {"gcg", "gcg-strict"}
    failed = {row["failed"] for row in metrics["results"] if row["items"] == len(samples)}
    assert failed == {1} and list(metrics["failures"]) == [samples[0].sample_id]
