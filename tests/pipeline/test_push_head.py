"""`push-head`: what it says, what it refuses, and the way a head takes: evaluate, push, evaluate --head hf://…"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from stages.train_head.heads.checkpoint import load_head, save_head, weights_digest
from tests.helpers import cli, tree
from tests.hub import TOKEN, server
from tests.stages.train_head.heads.known_heads import make_evaluation, make_head

FILES = ["README.md", "config.json", "metrics.json", "model.safetensors", "training.json"]


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture
def head(tmp_path: Path) -> Path:
    save_head(make_head(), tmp_path / "head")
    return tmp_path / "head"


def evaluation(folder: Path, head: Path, change: Callable[[dict], Any] = lambda _: None) -> Path:
    """An evaluation of that head, then changed."""
    metrics = make_evaluation(weights_digest(head))
    change(metrics["run"])
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_dry_run_shows_the_card_and_asks_nobody(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluation(tmp_path / "results", head)
    before, out = tree(head), tmp_path / "out"
    command = ["push-head", "--head", head, "--repo", "ann/head", "--evaluation", results, "--license", "apache-2.0"]
    with server(tmp_path / "downloads") as hub:
        cli(*command, "--dry-run", "--out", out)
        cli(*command, "--dry-run", "--out", out)  # once more: the folder is ours, the card is made anew
    assert hub.asked == [] and tree(head) == before
    said = capsys.readouterr().out
    assert "# unet-sam: a grounding head" in said and "nothing was uploaded" in said
    assert sorted(tree(out)) == FILES
    assert json.loads((out / "metrics.json").read_text()) == json.loads((results / "metrics.json").read_text())
    found = last_line(said)
    assert found["commit"] is None and found["files"] == {name: len(tree(out)[name]) for name in FILES}
    assert ModelCard.load(out / "README.md").data.license == "apache-2.0"
    assert load_head(out).record["license"] == "apache-2.0"  # goes along when it is pushed again


def test_it_uploads_what_it_listed_and_tells_no_token(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (head / "notes.txt").write_text("mine")
    with server(tmp_path / "downloads") as hub:
        cli("push-head", "--head", head, "--repo", "ann/head", "--private")
        repo = hub.repos["ann/head"]
        there = {name: body for name, body in repo.commits[repo.main].items() if name != ".gitattributes"}
        cli("push-head", "--head", "hf://ann/head", "--repo", "ann/copy", "--dry-run", "--out", tmp_path / "copy")
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err
    assert {token for _, path, token in hub.asked if "ann" in path or "create" in path} == {TOKEN}
    found = json.loads(next(line for line in told.out.splitlines() if line.startswith("{")))
    assert found["files"] == {name: len(body) for name, body in there.items()}
    assert repo.private and found["commit"].endswith(repo.main)
    assert sorted(there) == [name for name in FILES if name != "metrics.json"]
    assert there["model.safetensors"] == (head / "model.safetensors").read_bytes()
    assert there["config.json"] == (head / "config.json").read_bytes()
    copied = tree(tmp_path / "copy")
    assert {n: b for n, b in copied.items() if n != "README.md"} == {n: b for n, b in there.items() if n != "README.md"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run["identity"].update(merge="max"), 'merge: the head has "mean", the evaluation "max"'),
        (lambda run: run["identity"]["lmm"].update(dtype="float32"), 'lmm.dtype: the head has "bfloat16"'),
        (lambda run: run.update(weights="0" * 64), "weights: the head has"),
        (lambda run: run.pop("weights"), "weights: the head has"),
    ],
)
def test_an_evaluation_of_another_head_is_refused_by_the_field(
    head: Path, tmp_path: Path, change: Callable, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluation(tmp_path / "results", head, change)
    with server(tmp_path / "downloads") as hub:
        cli("push-head", "--head", head, "--repo", "ann/head", "--evaluation", results, expect=2)
    error = capsys.readouterr().err.strip()
    assert says in error and "evaluate this one" in error and "\n" not in error and hub.asked == []


def test_other_samples_of_the_same_priors_are_welcome(head: Path, tmp_path: Path) -> None:
    results = evaluation(tmp_path / "results", head, lambda run: run["identity"]["images"].update(rows="other"))
    cli(
        "push-head", "--head", head, "--repo", "ann/head", "--evaluation", results, "--dry-run", "--out", tmp_path / "o"
    )
    assert (tmp_path / "o" / "metrics.json").exists() and (tmp_path / "o" / "README.md").exists()


def test_an_evaluation_of_an_older_version_is_refused(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "metrics.json").write_text(json.dumps({"schema": 2, "protocols": [], "run": {}, "res": []}))
    cli("push-head", "--head", head, "--repo", "ann/head", "--evaluation", results, "--dry-run", expect=2)
    error = capsys.readouterr().err.strip()
    assert "schema '2', this one reads 3" in error and "evaluate again" in error and "\n" not in error


def test_imported_weights_can_not_be_given_a_licence(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((head / "training.json").read_text())
    provenance = {"source": "flmm.pth", "licence": "non-commercial"}
    (head / "training.json").write_text(json.dumps(record | {"provenance": provenance}))
    command = ["push-head", "--head", head, "--repo", "ann/head", "--dry-run", "--out", tmp_path / "out"]
    cli(*command, "--license", "mit", expect=2)
    assert "licence (non-commercial) binds it" in capsys.readouterr().err
    cli(*command)
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license_name == "non-commercial"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--head", "runs/nothing"], "a head of the Hub is hf://user/name"),
        (["--evaluation", "runs/nothing"], "holds no metrics.json of `evaluate`"),
        (["--dry-run", "--out", "full"], "is not empty and holds no head"),
        (["--repo", "no/such/name"], "give user/name"),
    ],
)
def test_wrong_input_is_one_line(
    head: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    given = {"--head": str(head), "--repo": "ann/head"} | dict.fromkeys(["--dry-run"] * ("--dry-run" in options), "")
    given |= dict(zip(options[-2::2], options[-1::2], strict=True))
    with server(tmp_path / "downloads"):
        cli("push-head", *[each for pair in given.items() for each in pair if each], expect=2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and says in error and "\n" not in error


def test_evaluate_push_and_evaluate_from_the_hub(
    small_cache: Path, small_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((small_head / "training.json").read_text())["data"]
    assert {name: value for name, value in data[0].items() if name not in ("objects", "failed")} == {
        "dataset": "scenes-refcoco",
        "split": "train",
        "task": "referring",
        "samples": 10,
    }
    assert all(row["split"] == "train" or (row["split"], row["task"]) == ("val", "referring") for row in data)
    command = ["evaluate", "--cache", small_cache, "--splits", "val", "--data-root", tmp_path]  # no images: no pictures
    cli(*command, "--head", small_head, "--out", tmp_path / "here")
    with server(tmp_path / "downloads"):
        cli("push-head", "--head", small_head, "--repo", "ann/head", "--evaluation", tmp_path / "here")
        cli(*command, "--head", "hf://ann/head", "--out", tmp_path / "there")
        card = ModelCard.load("ann/head")
    here, there = (json.loads((tmp_path / each / "metrics.json").read_text()) for each in ("here", "there"))
    assert {n: v for n, v in here.items() if n != "run"} == {n: v for n, v in there.items() if n != "run"}
    assert here["run"]["weights"] == there["run"]["weights"]
    assert "extract --lmm tiny" in card.text and "knows rendered coloured shapes" in card.text
    values = [each.metric_value for each in card.data.eval_results if each.metric_type == "ciou"]
    assert values == [
        row["value"]["value"]
        for row in here["results"]
        if (row["metric"], row["method"], row["group"]) == ("ciou", "refined", "all")
    ]
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "here", other)
    cli("push-head", "--head", small_head / "best", "--repo", "ann/best", "--evaluation", other, "--dry-run", expect=2)
    assert "weights: the head has" in capsys.readouterr().err  # the numbers are of the last weights, not of the best
