"""`evaluate --task qa`: what it prints, files and returns."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.evaluate.qa import scenes
from stages.evaluate.qa.exchanges import equality
from tests.helpers import cli


def test_the_answers_are_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli("evaluate", "--task", "qa", "--questions", "6", "--out", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    last, result = json.loads(lines[-1]), json.loads((tmp_path / "qa.json").read_text())
    assert last["identical"] and (last["questions"], last["different"], last["lmms_eval"]) == (6, 0, None)
    assert set(last["accuracy"]) == {"all", "colour", "texture", "ground", "count", "exists", "listing"}
    assert result["identical"] and result["scenes"]["capture"]["rows"] > 12
    assert [line for line in lines if line.startswith("| scenes, all ")]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and all(each["on"] == each["off"] for each in answers)
    first = {name: (tmp_path / name).read_bytes() for name in ("answers.jsonl",)}
    cli("evaluate", "--task", "qa", "--questions", "6", "--out", tmp_path)  # again, into its own folder
    assert first == {name: (tmp_path / name).read_bytes() for name in first}


def test_a_difference_is_shown_and_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    original = scenes.check_scenes

    def other(*args, **options):
        check = original(*args, **options)
        off = check.exchanges[0].off
        changed = [
            replace(check.exchanges[0], off=replace(off, ids=(9, *off.ids[1:]), text="else")),
            *check.exchanges[1:],
        ]
        return replace(check, exchanges=changed, about=check.about | equality(changed))

    monkeypatch.setattr(scenes, "check_scenes", other)
    cli("evaluate", "--task", "qa", "--questions", "2", "--out", tmp_path, expect=2)
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["identical"] is False
    assert "'else' (off)" in captured.out
    assert "error: 1 of 2 answers of tiny differ" in captured.err
    assert len(json.loads((tmp_path / "qa.json").read_text())["scenes"]["differences"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qa-tasks", "mme"], "--qa-tasks and --qa-python belong together"),
        (["--questions", "0"], "--questions and --qa-limit must be at least 1"),
        (["--dtype", "int8"], "--dtype int8: float32, bfloat16 or float16"),
        (["--lmm", "nothing"], "--lmm nothing: known are"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    cli("evaluate", "--task", "qa", "--out", tmp_path / "out", *options, expect=2)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_python_without_lmms_eval(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = ["evaluate", "--task", "qa", "--questions", "1", "--out", tmp_path, "--qa-tasks", "mme,pope", "--qa-python"]
    cli(*start, tmp_path / "none", expect=2)
    assert "can not be run (No such file or directory)" in capfd.readouterr().err
    if find_spec("lmms_eval") is None:
        cli(*start, sys.executable, expect=2)
        assert "has no lmms-eval" in capfd.readouterr().err.splitlines()[-1]
