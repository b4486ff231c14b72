"""The evaluate stage end to end, with failed samples, another cache's head, and real and user-made data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.priors import Priors
from manifests.errors import DatasetError
from manifests.masks import decode
from stages.evaluate.stage import held_out, run_head
from stages.train_head.heads.checkpoint import load_head
from tests.helpers import cli, tree


def test_metrics_report_and_pictures(
    small_cache: Path, small_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("evaluate", "--cache", small_cache, "--head", small_head, "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    of = {name: [r for r in metrics["results"] if r["protocol"] == name] for name in ("res-flmm", "png", "keywords")}
    splits = {("scenes-refcoco", s) for s in ("val", "testA", "testB")} | {("shifted-refcoco", "testA")}
    assert {(r["dataset"], r["split"]) for r in of["res-flmm"]} == splits
    assert {r["method"] for r in of["res-flmm"]} == {r["method"] for r in of["png"]} == {"refined", "coarse"}
    assert {r["dataset"] for r in of["png"]} == {"scenes-png", "shifted-png"}
    assert {r["group"] for r in of["png"]} >= {"all", "thing", "stuff", "singular", "plural"}
    texts = {s.sample_id: s for s in Priors.open(small_cache).samples if s.task == "narrative" and s.split != "train"}
    lams = [f"selector λ={0.05 * k:g}" for k in range(1, 20)]
    for dataset, split in {(s.dataset, s.split) for s in texts.values()}:
        found = [r for r in of["keywords"] if (r["dataset"], r["split"]) == (dataset, split)]
        assert sorted({r["method"] for r in found}) == sorted([*lams, "lexicon", "every noun phrase"])
        assert {r["items"] for r in found} == {sum((s.dataset, s.split) == (dataset, split) for s in texts.values())}
        assert len(found) == (19 + 2) * 9
    stored = sum(path.stat().st_size for path in (small_cache / "priors.zarr").rglob("c.*"))
    objects = sum(len(s.objects) for s in Priors.open(small_cache).samples)
    assert metrics["run"]["bytes per object"] == pytest.approx(stored / objects, abs=0.1)
    printed = capsys.readouterr().out
    assert f"{stored / objects:,.0f} bytes/object (+ " in printed and "sheet.png" in printed
    assert metrics["run"]["lam"] == 0.3 and metrics["failures"] == {}
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_numbers_equal_a_plain_loop_and_failed_samples_are_misses(small_cache: Path, small_head: Path) -> None:
    priors, head = Priors.open(small_cache), load_head(small_head)
    indices = held_out(priors, ["testA"])
    plain = run_head(head, priors, indices, batch_size=1)
    failing = indices[0]
    priors.failures[failing] = "made to fail"
    outcome = run_head(head, priors, indices, batch_size=3)
    sample = priors.samples[failing]
    assert outcome.failures == {sample.sample_id: "made to fail"}
    missed = [r for r in outcome.referring if r.failed]
    assert [r.area for r in missed] == [int(decode(o.mask).sum()) for o in sample.objects]
    assert all(r.intersection == 0 and r.union == r.area for r in missed)
    others = [r for r in outcome.referring if not r.failed]
    expected = [r for r in plain.referring if r.sample_id != sample.sample_id]
    assert len(others) == len(expected)
    for a, b in zip(others, expected, strict=True):
        assert a.phrase == b.phrase and a.area == b.area
        assert abs(a.intersection - b.intersection) <= 2 + 0.01 * b.area  # batches round at the threshold


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
    assert {r["method"] for r in results if r["protocol"].startswith("res")} == {"coarse"}
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
    monkeypatch.setattr("stages.evaluate.stage.run_head", None)  # refused before the work
    (tmp_path / "metrics.json").write_text('{"schema": 2, "accuracy": 1}')
    (tmp_path / "sheet.png").write_text("mine")
    before = tree(tmp_path)
    cli("evaluate", "--cache", small_cache, "--head", small_head, "--out", tmp_path, expect=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds no evaluation of this program (but metrics.json, sheet.png)" in error and "empty it" in error
    assert tree(tmp_path) == before


def test_an_unknown_split_is_named_with_those_that_exist(small_cache: Path) -> None:
    priors = Priors.open(small_cache)
    with pytest.raises(DatasetError, match=r"--splits nope: .* its splits are train, val, testA, testB$"):
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
    recall = next(r for r in metrics["results"] if (r["protocol"], r["group"]) == ("png", "all"))
    assert recall["items"] == 1
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 10_000
