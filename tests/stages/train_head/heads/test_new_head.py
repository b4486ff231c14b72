"""docs/new-head.md: its head runs exactly as printed, with its commands, and keeps what the document says must hold."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from stages.train_head.heads.base import HeadBatch, HeadOutput
from tests.helpers import cli
from tests.stages.train_head.heads.batches import SAMPLE, SHAPE, make_batch
from tests.stages.train_head.heads.test_every_head import part

TEXT = (Path(__file__).parents[4] / "docs" / "new-head.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the printed file, where the commands are given."""
    (code,) = blocks("python")
    (tmp_path / "my_head.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_it_has_about_thirty_lines() -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_the_printed_commands_train_and_evaluate_it(folder: Path, small_cache: Path) -> None:
    (shell,) = blocks("bash")
    commands = [shlex.split(line)[2:] for line in shell.splitlines() if line.startswith("python run_pipeline.py")]
    assert [command[0] for command in commands] == ["train-head", "evaluate"]
    cli(*commands[0], "--cache", small_cache, "--epochs", 1)
    cli(*commands[1], "--cache", small_cache)
    stored = json.loads((folder / "runs/my-head/config.json").read_text())
    assert (stored["head"], stored["config"]) == ("my-head", {"width": 48})
    assert (folder / "runs/my-results/metrics.json").is_file()


def test_what_must_hold_holds(folder: Path) -> None:
    module = importlib.import_module("my_head")
    torch.manual_seed(0)
    head, batch = module.MyHead(SHAPE, module.MyConfig()).eval(), make_batch()
    coarse = head(batch).coarse
    assert coarse.shape == (len(SAMPLE), head.coarse_size(6), head.coarse_size(6))
    for objects in ([4], [1, 6], []):
        torch.testing.assert_close(head(part(batch, objects)).coarse, coarse[objects], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [HeadBatch, HeadOutput])
def test_the_tables_name_every_field(kind: type) -> None:
    table = TEXT.split(f"| field of `{kind.__name__}`")[1].split("\n\n")[0]
    shown = [name for row in re.findall(r"^\| (`[\w`, ]+`)", table, re.MULTILINE) for name in re.findall(r"\w+", row)]
    assert shown == [field.name for field in fields(kind) if field.name != "hidden_scale"]  # no head sees that
