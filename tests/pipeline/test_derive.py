"""prune, encode and merge from the command line, and what the stages make of their results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache.priors import Priors
from manifests.masks import decode
from pipeline.head_options import _lmm_maps
from stages.train_head.ranking import THRESHOLDS, rank_maps
from tests.helpers import cli, tree


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def derived(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small cache pruned to 6 maps, and encoded both ways."""
    root = tmp_path_factory.mktemp("derived")
    cli("cache", "prune", "--cache", small_cache, "--to", root / "six", "--channels", "6")
    for encoding in ("lz4", "log8"):
        cli("cache", "encode", "--cache", small_cache, "--to", root / encoding, "--encoding", encoding)
    return root


def test_every_result_passes_verify_and_says_what_it_is(
    small_cache: Path, derived: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("six", "lz4", "log8"):
        cli("cache", "verify", "--cache", derived / name)
        assert [each["problems"] for each in last_line(capsys)["caches"]] == [[], []]
        cli("cache", "info", "--cache", derived / name)
        out = capsys.readouterr().out
        assert f'derived[0].action{"":<15} "{"prune" if name == "six" else "encode"}"' in out
        info = json.loads(out.splitlines()[-1])
        sizes = {path.name: path.stat().st_size for path in (derived / name / "priors.zarr/hidden").glob("c.*")}
        assert info["arrays"]["hidden"]["bytes"] == sum(sizes.values())
    assert "derived[0].channels" in (cli("cache", "info", "--cache", derived / "six") or capsys.readouterr().out)


def test_the_best_maps_are_those_of_a_plain_loop(small_cache: Path, derived: Path) -> None:
    priors = Priors.open(small_cache)
    identity = Priors.open(derived / "six").identity["derived"][0]
    how = Priors.open(derived / "six").store.meta.soft["prune"]
    side = priors.grid[0]
    both, either = np.zeros((30, len(THRESHOLDS))), np.zeros((30, len(THRESHOLDS)))
    chosen = priors.samples.where(split=["train"])
    objects = 0
    for index in chosen:
        item, sample = priors.read(index), priors.samples[index]
        assert item is not None
        top, left, height, width, size = item.box
        for maps, described in zip(item.attention, sample.objects, strict=True):
            mask, objects = decode(described.mask), objects + 1
            for y in range(side):
                for x in range(side):
                    # the centre of the cell, in pixels of the image
                    row = ((y + 0.5) * size / side - top) * sample.height / height
                    column = ((x + 0.5) * size / side - left) * sample.width / width
                    if not (0 <= row < sample.height and 0 <= column < sample.width):
                        continue
                    truth = bool(mask[int(row), int(column)])
                    above = maps[:, y, x, None] > np.array(THRESHOLDS)
                    both += above & truth
                    either += above | truth
    scores = (both / either).max(1)
    assert (how["samples"], how["objects"], how["split"]) == (len(chosen), objects, "train")
    np.testing.assert_allclose(rank_maps(priors).scores, scores, atol=0.02)  # edges of boxes round
    assert identity["channels"] == sorted(np.argsort(-rank_maps(priors).scores, kind="stable")[:6].tolist())
    assert min(scores[identity["channels"]]) >= np.sort(scores)[-6] - 0.03
    assert how["scores"] == [round(float(rank_maps(priors).scores[each]), 4) for each in identity["channels"]]


def test_pruning_again_is_the_same_and_other_maps_are_another_cache(
    small_cache: Path, derived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(derived / "six")
    cli("cache", "prune", "--cache", small_cache, "--to", derived / "six", "--channels", "6")
    assert tree(derived / "six") == before
    for spec, says in (
        ("7", r"derived[0].channels"), ("0", "--channels 0: "), ("31", "has 30 maps"), ("0,30", "the maps 0 to 29"),
        ("1,1", "names 1 twice"), ("x", "--channels x: give the number"), ("", "--channels : give"), ("-1", "give"),
    ):  # fmt: skip
        capsys.readouterr()
        cli("cache", "prune", "--cache", small_cache, "--to", derived / "six", f"--channels={spec}", expect=2)
        errors = capsys.readouterr().err.strip().splitlines()
        assert errors[-1].startswith("error: ") and says in errors[-1]
    assert tree(derived / "six") == before
    cli("cache", "prune", "--cache", small_cache, "--to", tmp_path / "a/one", "--channels", "5,")
    assert last_line(capsys)["channels"] == [5]


def test_an_extraction_onto_a_derived_cache_is_refused(
    data_root: Path, derived: Path, small_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("six", "lz4", "log8"):
        before = tree(derived / name)
        images = small_cache / "images"
        cli("extract", "--data-root", data_root, "--cache", derived / name, "--images", images, "--local", expect=2)
        assert "was made with other settings: " in (error := capsys.readouterr().err) and "derived: cache has" in error
        assert tree(derived / name) == before


def test_heads_take_them_and_only_what_they_were_trained_on(
    small_cache: Path, derived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    six, head, packed, other = derived / "six", tmp_path / "head", tmp_path / "packed", tmp_path / "other"
    cli("train-head", "--cache", six, "--out", head, "--epochs", "1", "--no-refiner")
    cli("cache", "encode", "--cache", six, "--to", packed, "--encoding", "lz4")
    cli("cache", "encode", "--cache", six, "--to", tmp_path / "log8")
    cli("cache", "prune", "--cache", small_cache, "--to", other, "--channels", "0,1,2,3,4,5")
    cli("evaluate", "--cache", packed, "--head", head, "--out", tmp_path / "a", "--splits", "testB")  # the same values
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["results"]
    capsys.readouterr()
    for cache in (other, small_cache, tmp_path / "log8"):
        cli("evaluate", "--cache", cache, "--head", head, "--out", tmp_path / "b", "--splits", "testB", expect=2)
        assert "was trained on other priors than these: derived" in capsys.readouterr().err


def test_the_preset_follows_the_lmm_and_not_the_maps_that_are_left(derived: Path) -> None:
    assert _lmm_maps(Priors.open(derived / "six")) == 30
    tiled = {"layers": 40, "attention_layers": 32, "heads": 32, "views": 2}
    for lmm, maps in ((tiled, 2048), ({"layers": 32, "heads": 32}, 1024)):
        assert _lmm_maps(SimpleNamespace(identity={"lmm": lmm}, channels=64)) == maps


@pytest.mark.parametrize("name", ["lz4", "log8"])
def test_one_file_carries_them_too(derived: Path, small_cache: Path, tmp_path: Path, name: str) -> None:
    cli("cache", "export", "--cache", derived / name, "--to", tmp_path / "a.h5")
    cli("cache", "verify", "--cache", tmp_path / "a.h5")
    folder, file = Priors.open(derived / name), Priors.open(tmp_path / "a.h5", images_dir=small_cache / "images")
    for index in range(0, len(folder), 5):
        one, other = folder.read(index), file.read(index)
        assert one is not None and other is not None
        np.testing.assert_array_equal(one.attention, other.attention, strict=True)
    cli("cache", "import", "--from", tmp_path / "a.h5", "--cache", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(derived / name)


def test_merge_from_the_command_line(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_cache: Path
) -> None:
    parts = []
    for name in ("scenes-refcoco", "scenes-png"):
        parts += ["--cache", tmp_path / name]
        cli("extract", "--dataset", name, "--data-root", data_root, "--cache", tmp_path / name, "--limit", "2",
            "--images", small_cache / "images", "--local")  # fmt: skip
    capsys.readouterr()
    cli("cache", "merge", *parts, "--to", tmp_path / "both")
    record = last_line(capsys)
    assert record["bytes"]["after"] >= record["bytes"]["before"] and len(record["merged"]) == 2
    cli("cache", "verify", "--cache", tmp_path / "both")
    both, first = Priors.open(tmp_path / "both"), Priors.open(tmp_path / "scenes-refcoco")
    assert both.samples.meta["merged"][1]["dataset"] == "scenes-png"
    old, new = first.read(0), both.read(0)
    assert old is not None and new is not None and np.array_equal(old.attention, new.attention)
    cli("train-head", "--cache", tmp_path / "both", "--out", tmp_path / "head", "--epochs", "1", "--no-refiner")
    cli("cache", "merge", *parts, *parts[:2], "--to", tmp_path / "again", expect=2)
    assert "merge caches of different samples" in capsys.readouterr().err
