"""`compare`: from folders of `evaluate` to a page; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.evaluate.report import write_report
from tests.helpers import cli, tree
from tests.stages.evaluate.made_up import everything


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three evaluations, two of them in folders of one name."""
    places = [tmp_path / "a" / "results", tmp_path / "b" / "results", tmp_path / "c"]
    for k, place in enumerate(places):
        write_report(place, everything(lmm=f"lmm {k}"))
    return places


def test_three_runs(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    cli("compare", *runs, "--out", out)
    cli("compare", *runs[:2], "--out", out)  # its own folder is written again
    said = capsys.readouterr().out
    assert "### Referring expressions, F-LMM's protocol" in said
    last = json.loads(said.splitlines()[-1])
    assert last == {"runs": ["a/results", "b/results"], "warnings": [], "file": str(out / "comparison.json")}
    assert sorted(tree(out)) == ["comparison.html", "comparison.json", "comparison.md"]
    assert json.loads((out / "comparison.json").read_text())["differences"] == {"lmm": ["lmm 0", "lmm 1"]}


def test_wrong_input_is_one_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, full = tmp_path / "old", tmp_path / "full"
    for folder, name, content in ((old, "metrics.json", '{"schema": 2, "run": {}}'), (full, "thesis.tex", "x")):
        folder.mkdir()
        (folder / name).write_text(content)
    for args, says in (
        (runs[:1], "compare needs two evaluations at least"),
        ([runs[0], runs[0]], "a folder is given twice"),
        ([runs[0], tmp_path / "nothing"], "nothing can not be read (No such file or directory)"),
        ([runs[0], old], "schema '2', this one reads 3): evaluate again"),
        ([*runs, "--out", full], "is not empty and holds no comparison of this program (but thesis.tex)"),
    ):
        cli("compare", *args, *([] if "--out" in args else ["--out", tmp_path / "out"]), expect=2)
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and says in error and "\n" not in error
    assert not (tmp_path / "out").exists() and sorted(tree(full)) == ["thesis.tex"]
