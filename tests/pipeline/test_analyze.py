"""analyze from the command line, and `cache prune --ranking` on what it found."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.identity import digest
from cache.priors import Priors
from stages.train_head.ranking import rank_maps
from tests.helpers import cli, tree


@pytest.fixture(scope="module")
def analyzed(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cache's analysis of its train split."""
    out = tmp_path_factory.mktemp("analysis") / "out"
    cli("analyze", "--cache", small_cache, "--out", out, "--pictures", "3")
    return out


@pytest.fixture(scope="module")
def record(analyzed: Path) -> dict[str, Any]:
    return json.loads((analyzed / "analysis.json").read_text())


def test_it_leaves_numbers_a_table_and_pictures(small_cache: Path, analyzed: Path, record: dict[str, Any]) -> None:
    priors = Priors.open(small_cache)
    assert sorted(path.name for path in analyzed.iterdir()) == [
        "analysis.json",
        "clusters.png",
        "heads.png",
        "maps.csv",
    ]
    assert record["identity"] == digest(priors.identity) and record["split"] == "train"
    objects = sum(len(priors.samples[i].objects) for i in priors.samples.where(split=["train"]))
    assert record["objects"] == objects
    assert [sum(counts.values()) for counts in record["groups"].values()] == [objects] * 3
    assert set(record["method"]) >= {"ciou", "miou", "pointing", "control", "attention_mass", "entropy", "size"}
    np.testing.assert_allclose([each["ciou"] for each in record["maps"]], rank_maps(priors).scores, atol=1e-6)
    assert [(each["layer"], each["head"]) for each in record["maps"]] == [(m, n) for m in range(5) for n in range(6)]
    assert len(record["layers"]) == 5 and record["best"][0]["map"] == int(rank_maps(priors).scores.argmax())
    with (analyzed / "maps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ciou"]) for row in rows] == [each["ciou"] for each in record["maps"]]
    assert float(rows[7]["stuff_control_miou"]) == record["maps"][7]["groups"]["stuff"]["control_miou"]
    for name in ("heads.png", "clusters.png"):
        assert Image.open(analyzed / name).width > 500


def test_again_it_gives_the_same_and_the_tables_are_readable(
    small_cache: Path, analyzed: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("analyze", "--cache", small_cache, "--out", tmp_path, "--pictures", "3")
    lines = capsys.readouterr().out.splitlines()
    last, best = json.loads(lines[-1]), record["best"][0]
    assert last["command"] == "analyze" and last["best"]["map"] == best["map"]
    table = next(i for i, line in enumerate(lines) if line.startswith("map "))
    assert lines[table + 2].startswith(f"{best['map']} ") and f"L{best['layer']} H{best['head']}" in lines[table + 2]
    assert f"{100 * record['maps'][best['map']]['ciou']:.1f}/" in lines[table + 2]
    for name in ("maps.csv", "heads.png", "clusters.png"):
        assert (tmp_path / name).read_bytes() == (analyzed / name).read_bytes()
    again = json.loads((tmp_path / "analysis.json").read_text())
    assert {k: v for k, v in again.items() if k != "objects_per_s"} == {
        k: v for k, v in record.items() if k != "objects_per_s"
    }


def test_images_that_are_not_there_cost_the_pictures_only(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    cli("analyze", "--cache", small_cache, "--out", tmp_path / "out", "--samples", "3", "--pictures", "1")
    assert (tmp_path / "out" / "clusters.png").is_file()
    cli("analyze", "--cache", small_cache, "--out", tmp_path / "out", "--samples", "3", "--data-root", tmp_path)
    assert "no pictures of clusters: " in (text := capsys.readouterr().out) and "--data-root" in text
    assert not (tmp_path / "out" / "clusters.png").exists() and (tmp_path / "out" / "heads.png").is_file()
    assert json.loads(text.splitlines()[-1])["files"] == ["analysis.json", "maps.csv", "heads.png"]


def test_a_pruned_cache_keeps_its_layers_and_heads(small_cache: Path, record: dict[str, Any], tmp_path: Path) -> None:
    cli("cache", "prune", "--cache", small_cache, "--to", tmp_path / "a" / "four", "--channels", "3,17,29,20")
    cli("cache", "prune", "--cache", tmp_path / "a" / "four", "--to", tmp_path / "a" / "two", "--channels", "2,1")
    cli("analyze", "--cache", tmp_path / "a" / "two", "--out", tmp_path / "out")
    maps = json.loads((tmp_path / "out" / "analysis.json").read_text())["maps"]
    assert [(m["map"], m["original"], m["layer"], m["head"]) for m in maps] == [(0, 29, 4, 5), (1, 17, 2, 5)]
    for found in maps:
        whole = record["maps"][found["original"]]
        assert {k: v for k, v in found.items() if k != "map"} == {k: v for k, v in whole.items() if k != "map"}


def test_prune_takes_the_best_of_an_analysis(
    small_cache: Path, analyzed: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    to = tmp_path / "a" / "five"
    cli(
        "cache", "prune", "--cache", small_cache, "--to", to, "--channels", "5", "--ranking", analyzed / "analysis.json"
    )
    pruned = Priors.open(to)
    best = sorted(range(30), key=lambda number: (-record["maps"][number]["ciou"], number))[:5]
    assert pruned.identity["derived"][0]["channels"] == sorted(best) == rank_maps(Priors.open(small_cache)).best(5)
    how = pruned.store.meta.soft["prune"]
    assert (how["split"], how["objects"]) == ("train", record["objects"]) and how["method"] == record["method"]["ciou"]
    assert how["scores"] == [round(record["maps"][number]["ciou"], 4) for number in sorted(best)]


def test_rankings_that_do_not_belong_are_refused(
    small_cache: Path, analyzed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("cache", "prune", "--cache", small_cache, "--to", tmp_path / "a/six", "--channels", "0,1,2,3,4,5")
    cli("analyze", "--cache", tmp_path / "a/six", "--out", tmp_path / "six", "--samples", "3", "--pictures", "0")
    cli("analyze", "--cache", small_cache, "--out", tmp_path / "test", "--split", "testA", "--pictures", "0")
    (tmp_path / "other.json").write_text('{"maps": []}')
    for ranking, channels, says in (
        (tmp_path / "six/analysis.json", "5", "another cache: derived: it has [{"),
        (tmp_path / "test/analysis.json", "5", "on the split testA: maps are not chosen on test data"),
        (tmp_path / "other.json", "5", "is no analysis"),
        (tmp_path / "nowhere.json", "5", "is missing: make it with run_pipeline.py analyze"),
        (analyzed / "maps.csv", "5", "can not be read"),
        (analyzed / "analysis.json", "31", "has 30 maps"),
        (analyzed / "analysis.json", "0,1", "give one of the two"),
    ):
        capsys.readouterr()
        args = ("cache", "prune", "--cache", small_cache, "--to", tmp_path / "a/x", "--channels", channels)
        cli(*args, "--ranking", ranking, expect=2)
        errors = capsys.readouterr().err.strip().splitlines()
        assert errors[-1].startswith("error: ") and says in errors[-1]
    assert not (tmp_path / "a/x").exists()


def test_wrong_input_is_one_line_with_a_cure(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years")
    before = tree(tmp_path)
    for args, says in (
        (["--split", "nothing"], "no sample of the split nothing (it has train, val"),
        (["--out", tmp_path / "foreign"], "holds no analysis of this program (but thesis.tex)"),
        (["--samples", "0"], "--samples 0: must be at least 1"),
        (["--clusters", "1"], "--clusters 1: must be at least 2"),
        (["--cache", tmp_path / "none"], "run extract first"),
    ):
        given = ["analyze", "--cache", small_cache, "--out", tmp_path / "new", *args]
        cli(*given, expect=2)
        errors = capsys.readouterr().err.strip().splitlines()
        assert errors[-1].startswith("error: ") and says in errors[-1]
    assert tree(tmp_path) == before
