"""`manifest build | info | overlap` as commands: counts against plain sums, official numbers, what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from manifests.build import build
from manifests.manifest import Samples
from tests.helpers import cli
from tests.manifests.fuzzing import png, reasonseg, refcoco

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def run(capsys: pytest.CaptureFixture[str], *args: Any, expect: int = 0) -> tuple[str, dict[str, Any]]:
    """What the command prints, and its last line."""
    capsys.readouterr()
    cli("manifest", *args, expect=expect)
    text = capsys.readouterr().out
    return text, json.loads(text.strip().splitlines()[-1])


def test_counts_are_plain_sums(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.parquet"
    _, built = run(capsys, "build", "--dataset", "scenes-refcoco", "--data-root", data_root, "--file", file)
    samples = build("scenes-refcoco", data_root)
    assert list(Samples(file)) == samples and built["warnings"] == []
    for row in built["splits"]:
        some = [s for s in samples if s.split == row["split"]]
        assert row["samples"] == row["images"] == len(some)
        assert row["objects"] == row["expressions"] == sum(len(s.objects) for s in some)
        assert row["tokens"] == sum(len(p.text.split()) for s in some for p in s.pieces)  # the tiny LMM: a word a token
        assert row["missing_images"] == row["problems"] == 0 and row["official"] is None
    _, looked_at = run(capsys, "info", "--file", file)
    assert looked_at["splits"] == built["splits"] and not built["tokens_estimated"]
    sentences = ("--sentences", "all", "--context", "alone")
    _, every = run(capsys, "info", "--dataset", "scenes-refcoco", "--data-root", data_root, *sentences)
    for few, many in zip(built["splits"], every["splits"], strict=True):
        assert few["objects"] == many["objects"] < many["expressions"] == many["samples"]


def test_planned_bytes_are_those_of_the_cache(
    data_root: Path, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of expressions alone: of answers, not yet given, no bytes are planned."""
    expressions = ("--dataset", "scenes-refcoco", "--data-root", data_root)
    cli("extract", *expressions, "--cache", tmp_path / "c", "--images", small_cache / "images", "--local")
    _, told = run(capsys, "info", *expressions)
    arrays = sum(p.stat().st_size for p in (tmp_path / "c/priors.zarr").rglob("*") if p.is_file())
    assert told["priors_bytes"] == pytest.approx(arrays, rel=0.02)  # checksums, indices
    assert told["priors_bytes"] < sum(row["priors_bytes"] for row in told["splits"])  # shards of few are padded


def test_an_lmm_whose_tokenizer_is_elsewhere(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, told = run(capsys, "info", "--dataset", "scenes-png", "--data-root", data_root, "--lmm", "llava")
    assert told["tokens_estimated"] and "estimated" in text and told["lmm"] == "llava"
    assert told["splits"][0]["priors_bytes"] > 1_179_648 * told["splits"][0]["objects"]


def test_official_numbers_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refcoco(tmp_path)
    text, told = run(capsys, "info", "--dataset", "refcoco", "--data-root", tmp_path, "--splits", "val")
    assert told["splits"][0]["official"] == {"images": 1500, "objects": 3811, "expressions": 10834}
    assert [w.split(":")[1] for w in told["warnings"]] == [
        " 1 images, officially 1,500",
        " 2 objects, officially 3,811",
    ]
    assert "officially       " in text and f"warning: {told['warnings'][0]}" in text
    sentences = ("--sentences", "all", "--context", "alone")
    _, every = run(capsys, "info", "--dataset", "refcoco", "--data-root", tmp_path, "--splits", "val", *sentences)
    assert "4 expressions, officially 10,834" in every["warnings"][2]
    _, some = run(capsys, "info", "--dataset", "refcoco", "--data-root", tmp_path, "--splits", "val", "--limit", 1)
    assert some["warnings"] == []


def test_missing_files_are_named_with_their_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png(tmp_path)
    shutil.rmtree(tmp_path / "val2017")
    text, told = run(capsys, "info", "--dataset", "png", "--data-root", tmp_path)
    assert "png/png_coco_train2017.json" in told["missing"] and "val2017/" in told["missing"]
    assert "png/png_coco_val2017.json" not in told["missing"]
    assert "http://images.cocodataset.org/zips/val2017.zip" in text and "layout: val2017/*.jpg" in text
    assert [(row["split"], row["missing_images"]) for row in told["splits"]] == [("val", 1)]
    cli("manifest", "build", "--dataset", "png", "--data-root", tmp_path, "--file", tmp_path / "m", expect=2)
    assert "files or folders are missing" in capsys.readouterr().err and not (tmp_path / "m").exists()
    _, nothing = run(capsys, "info", "--dataset", "png", "--data-root", tmp_path, "--splits", "train", expect=2)
    assert nothing["splits"] == []


def test_questions_are_counted_before_they_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasonseg(tmp_path)
    _, told = run(capsys, "info", "--dataset", "reasonseg", "--data-root", tmp_path, "--splits", "val")
    assert told["splits"][0]["questions"] == 1 and told["problems"] == 0


def test_only_a_manifest_is_written_over(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    command = ("manifest", "build", "--dataset", "scenes-png", "--data-root", data_root, "--file")
    cli(*command, file, expect=2)
    assert f"{file} is there and is no manifest: give another --file" in capsys.readouterr().err
    assert file.read_text() == "mine"
    file.unlink()
    cli(*command, file)
    cli(*command, file)


def test_overlap(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refcoco(tmp_path)
    text, told = run(capsys, "overlap", "--data-root", data_root, "--more-roots", tmp_path)
    names = [(row["dataset"], row["split"]) for row in told["splits"]]
    train, pairs = names.index(("scenes-refcoco", "train")), names.index(("scenes-png", "train"))
    assert told["shared"][train][pairs] == told["shared"][pairs][train] == told["splits"][train]["images"] == 10
    assert told["shared"][train][names.index(("scenes-refcoco", "val"))] == 0 and ("refcoco", "val") in names
    assert "scenes-refcoco testA" in text and "not there: own: " in text


def test_decontaminated_extraction_and_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refcoco(tmp_path)  # its train and val are on one image
    options = ("--dataset", "refcoco", "--data-root", tmp_path, "--decontaminate", "--splits", "train", "val")
    text, told = run(capsys, "build", *options, "--file", tmp_path / "m")
    because = [{"dataset": "refcoco", "split": "val", "samples": 1, "images": 1}]
    assert told["decontaminated"] == {"samples": 1, "images": 1, "because": because}
    assert Samples(tmp_path / "m").meta["decontaminated"] == told["decontaminated"]
    assert [s.split for s in Samples(tmp_path / "m")] == ["val"] and "1 of 1 images are in refcoco val" in text
    cli("extract", *options, "--cache", tmp_path / "c", "--dry-run")
    out = capsys.readouterr().out
    assert "dropped 1 training samples of 1 images" in out and "samples  1 (0 can not be used), 2 objects" in out


def test_the_real_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is missing")
    (tmp_path / "refcoco").symlink_to(REAL / "refcoco_format")
    _, told = run(capsys, "overlap", "--data-root", tmp_path)
    names = [f"{row['dataset']} {row['split']}" for row in told["splits"]]
    assert {"refcoco val", "refcoco+ testA", "refcocog train", "refcoco-google val"} <= set(names)
