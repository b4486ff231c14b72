"""The ablation: its rows, its table, that it goes on where it was, and the second extraction of one row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache.priors import Priors
from cache.store import Store
from pipeline.ablate import Ablate, conditions
from stages.train_head.ranking import rank_maps
from tests.helpers import cli

QUICK = ("--quick", "--device", "cpu", "--processes", "1")


@pytest.fixture(scope="module")
def ablated(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows, one of them with another cache."""
    out = tmp_path_factory.mktemp("ablation")
    only = ("--only", "best_3", "merge_max", "--extract=--local")
    cli("ablate", "--cache", small_cache, "--out", out, *QUICK, *only)
    return out


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "quick/ablation.json").read_text())


def test_rows_fit_the_cache(small_cache: Path) -> None:
    rows = conditions(Ablate(cache=str(small_cache)), Priors.open(small_cache))
    assert list(rows) == [
        *("all", "no_refiner", "mask", "mask_box", "box_text", "text"),
        *("layers_first", "layers_middle", "layers_last", "layer_0", "layer_1", "layer_3", "layer_4"),
        *("native", "size_64", "best_15", "best_7", "best_3", "merge_max"),
    ]
    layers = [rows[f"layers_{name}"].options["layers"] for name in ("first", "middle", "last")]
    assert layers == ["0-1", "2", "3-4"]


def test_the_result_holds_every_row_and_its_change(ablated: Path, small_cache: Path) -> None:
    result = result_of(ablated)
    assert list(result["rows"]) == ["all", "best_3", "merge_max"] and result["complete"]
    assert result["quality_claim"] is False and result["recipe"] == {"seeds": 1, "epochs": 1}
    for row in result["rows"].values():
        for metric in ("res_ciou", "png_all"):
            change = row[metric]["mean"] - result["rows"]["all"][metric]["mean"]
            assert row[f"change_{metric}"]["seeds"] == [pytest.approx(change)]
    maps = result["rows"]["best_3"]["options"]["channels"]
    assert maps == ",".join(map(str, rank_maps(Priors.open(small_cache), split="train").best(3)))
    assert result["rows"]["best_3"]["bytes_per_object"]["mean"] < result["rows"]["all"]["bytes_per_object"]["mean"]


def test_the_second_cache_differs_in_its_merge_only_and_shares_the_images(ablated: Path, small_cache: Path) -> None:
    first, second = Store.open(small_cache), Store.open(ablated / "quick/cache-max")
    assert second.meta.identity == first.meta.identity | {"merge": "max"}
    assert not (ablated / "quick/cache-max/images").exists()
    assert first.meta.files["manifest.parquet"] == second.meta.files["manifest.parquet"]


def test_a_second_run_trains_and_extracts_nothing(
    ablated: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("it worked again")

    for name in ("stages.train_head.trainer.train", "pipeline.extract.run"):
        monkeypatch.setattr(name, fails)
    before = result_of(ablated)
    cli("ablate", "--cache", small_cache, "--out", ablated, *QUICK, "--only", "best_3", "merge_max")
    text = capsys.readouterr().out
    assert "3 runs, 3 of them done, 0 to do" in text and "the best 3 maps" in text
    assert json.loads(text.splitlines()[-1]) == result_of(ablated) == before
    with pytest.raises(AssertionError):  # a row that was not there
        cli("ablate", "--cache", small_cache, "--out", ablated, *QUICK, "--only", "mask")


def test_where_no_second_extraction_can_be_made_the_row_is_left_out_and_said_so(
    ablated: Path, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quick").mkdir()
    finished = [path for path in (ablated / "quick").glob("*.json") if path.name.startswith("all-")]
    for path in [ablated / "quick/ablation.json", *finished]:
        shutil.copy(path, tmp_path / "quick")
    only = ("--only", "merge_max", "--extract=--lmm nowhere --local")
    cli("ablate", "--cache", small_cache, "--out", tmp_path, *QUICK, *only)
    text = capsys.readouterr().out
    assert "merge_max needs a second extraction: " in text and " GB of priors into " in text
    assert "merge_max is left out: --lmm nowhere" in text
    assert list(json.loads(text.splitlines()[-1])["rows"]) == ["all"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--only", "nothing"], "--only nothing: the rows for "),
        (["--only", "nothing"], "all, no_refiner, mask, mask_box, box_text, text, layers_first"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--cache", "nowhere"], "run extract first"),
    ],
)
def test_wrong_input_is_one_line(
    args: list[str], says: str, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("ablate", "--cache", small_cache, "--out", tmp_path, *args, expect=2)
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and says in error[-1]
    assert not list(tmp_path.iterdir())
