"""docs/ground.md: its Python as printed, and the names in its tables."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from manifests.scenes.world import make_scene
from stages.ground import Grounder, Grounding, Phrase, Word
from tests.helpers import cli

TEXT = (Path(__file__).parents[3] / "docs" / "ground.md").read_text(encoding="utf-8")


def test_the_printed_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_scene("narratives", 2).image).save("photo.jpg", quality=95)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(compile(code, "ground.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names["grounding"].phrases) > 1 and "the ring" in lines[0]


def test_the_tables_name_what_there_is() -> None:
    def named(first: str) -> list[str]:
        rows = TEXT.split(first)[1].split("\n\n")[0].splitlines()
        return [name for row in rows if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row.split("|")[1])]

    calls = [re.match(r"(?:Grounder)?\.(\w+)", name) for name in named("| call | what it gives |")]
    assert [call[1] for call in calls if call] == ["load", "answer", "ground", "segment"]
    assert all(hasattr(Grounder, call[1]) for call in calls if call)
    known = {each.name for each in fields(Grounding)} | set(dir(Grounding))
    assert {name.partition("(")[0] for name in named("| `Grounding` | |")} <= known
    (words,) = re.findall(r"`Word\(([^)]*)\)`", TEXT)
    assert words.split(", ") == [each.name for each in fields(Word)]
    (phrase,) = re.findall(r"`Phrase\(([^)]*)\)`", TEXT)
    assert all(hasattr(Phrase, name) for name in phrase.split(", "))


def test_the_json_has_what_the_table_says(tmp_path: Path) -> None:
    Image.fromarray(make_scene("narratives", 2).image).save(tmp_path / "photo.png")
    cli("ground", "--image", tmp_path / "photo.png", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "photo.json").read_text())
    rows = re.findall(r"^\| (`.*?) \|", TEXT.split("| field of NAME.json | |")[1].split("\n\n")[0], re.MULTILINE)
    names = [name.removesuffix("[]") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert set(names) == set(found)
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| `phrases[]`")]
    listed = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    assert set(found["phrases"][0]) <= listed
