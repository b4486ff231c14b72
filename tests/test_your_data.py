"""docs/your-data.md: its files and commands exactly as printed, down to the plan of an extraction."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.build import build
from manifests.masks import area, decode
from manifests.own import _LINE_KEYS, _PIECE_KEYS
from manifests.schema import problem
from tests.helpers import cli

TEXT = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the printed files, where the commands are given."""
    monkeypatch.chdir(tmp_path)
    (code,), (lines,), (coco,) = blocks("python"), blocks("jsonl"), blocks("json")
    exec(compile(code, "your-data.md", "exec"), {})
    (tmp_path / "my-data/samples.jsonl").write_text(lines)
    (tmp_path / "my-coco/annotations").mkdir()
    (tmp_path / "my-coco/annotations/train.json").write_text(coco)
    return tmp_path


def test_the_printed_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line)[2:] for block in blocks("bash") for line in block.splitlines()]
    assert [command[0] for command in commands] == ["manifest", "extract"] * 2
    found = []
    for command in commands:
        cli(*command)
        found.append(capsys.readouterr().out)
    for info, samples in zip(found[::2], (2, 2), strict=True):
        counts = json.loads(info.splitlines()[-1])
        assert sum(split["samples"] for split in counts["splits"]) == samples and counts["problems"] == 0
    assert "2 (0 can not be used), 3 objects" in found[1] and "2 (0 can not be used), 3 objects" in found[3]


def test_what_the_lines_say(folder: Path) -> None:
    desk, park = build("own", "my-data")
    assert [o.phrase for o in desk.objects] == ["the red mug", "the pens"] and desk.objects[1].plural
    with Image.open("my-data/masks/mug.png") as mask:
        assert np.array_equal(decode(desk.objects[0].mask), np.asarray(mask) > 0)
    assert park.task == "narrative" and not park.objects[0].is_thing and area(park.objects[0].mask) == 400 * 120


def test_what_the_coco_file_says(folder: Path) -> None:
    desk, park = build("own-coco", "my-coco")
    assert [(o.phrase, o.plural, o.is_thing) for o in (*desk.objects, *park.objects)] == [
        ("the red mug", False, True), ("tree", True, True), ("sky", False, False),
    ]  # fmt: skip
    assert all(problem(sample) is None for sample in (desk, park))


def test_the_table_names_every_key() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(rows) == _LINE_KEYS.keys() | _PIECE_KEYS.keys()
