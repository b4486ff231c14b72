"""`ground` with the embedded models: its files against pycocotools and the text, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from manifests.scenes.world import make_scene
from pipeline import ground_files, ground_text
from pipeline.ground import NOTE, QUESTION
from stages.train_head.heads.hub import fetch_head
from tests.helpers import cli, tree
from tests.stages.ground.test_photos import header_of


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two held-out scenes, the first of 108 x 144 pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in (0, 2):
        Image.fromarray(np.asarray(make_scene("narratives", number).image)).save(folder / f"scene{number}.png")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """What `ground` made of both."""
    out = tmp_path_factory.mktemp("done") / "out"
    cli("ground", "--image", scenes, "--out", out)
    return out


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def last_line(said: str) -> dict[str, Any]:
    return json.loads(said.splitlines()[-1])


def test_files_say_what_was_answered_and_where_it_is(done: Path, scenes: Path) -> None:
    assert sorted(tree(done)) == ["ground.json", "scene0.json", "scene0.png", "scene2.json", "scene2.png"]
    record = read(done / "scene0.json")
    assert record["image"] == str(scenes / "scene0.png") and record["sha256"] == ground_files.sha256(
        scenes / "scene0.png"
    )
    assert (record["lmm"], record["head"], record["note"]) == ("tiny", "tiny", NOTE)
    assert record["question"] == QUESTION == record["settings"]["question"] and record["lam"] == 0.3
    assert record["weights"] == ground_files.sha256(fetch_head("tiny") / "model.safetensors")
    assert record["phrases"] and record["finished"]
    for phrase in record["phrases"]:
        assert record["text"][phrase["start"] : phrase["end"]] == phrase["text"] and 0.3 < phrase["score"] <= 1
        for name in ("mask", "coarse_mask"):
            assert coco.decode(phrase[name]).shape == (record["height"], record["width"]) == (108, 144)
        mask = coco.decode(phrase["mask"])
        assert mask.sum() == phrase["area"]
        assert coco.toBbox(phrase["mask"]).tolist() == (phrase["bbox"] or [0, 0, 0, 0])
    assert all(record["text"][w["start"] : w["end"]] == w["text"] for w in record["words"])
    with Image.open(done / "scene0.png") as picture:
        assert picture.width == 900 + 64 and picture.height > 675 + 64


def test_ground_json(done: Path) -> None:
    found = read(done / "ground.json")
    assert found["command"] == "ground" and found["results"] == ["scene0.json", "scene2.json"] and not found["failures"]
    totals, records = found["totals"], [read(done / name) for name in found["results"]]
    assert (totals["images"], totals["kept"], totals["failures"]) == (2, 0, 0)
    assert totals["phrases"] == sum(len(record["phrases"]) for record in records)
    assert list(totals["seconds"]) == ["answer", "capture", "sam", "selector", "decode"]
    assert totals["seconds"]["answer"] == pytest.approx(
        sum(record["seconds"]["answer"] for record in records), abs=1e-3
    )


def test_what_is_there_is_kept(done: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = tree(out)
    cli("ground", "--image", scenes, "--out", out)
    said = capsys.readouterr().out
    assert said.count("kept: made before") == 2 and "[1: " in said and last_line(said)["kept"] == 2
    after = tree(out)
    assert all(after[name] == content for name, content in before.items() if name != "ground.json")
    (out / "scene0.png").unlink()  # as if it had been stopped before
    cli("ground", "--image", scenes, "--out", out)
    assert last_line(capsys.readouterr().out)["kept"] == 1 and tree(out)["scene0.png"] == before["scene0.png"]
    cli("ground", "--image", scenes / "scene0.png", "--out", out, "--no-refiner", "--side", "300")
    assert last_line(capsys.readouterr().out)["kept"] == 0
    changed, first = read(out / "scene0.json"), json.loads(before["scene0.json"])
    assert changed["phrases"] == first["phrases"], "the JSON has both masks whatever is drawn"
    cli("ground", "--image", scenes / "scene0.png", "--out", out, "--no-refiner", "--side", "300", "--overwrite")
    assert last_line(capsys.readouterr().out)["kept"] == 0


def test_given_words(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--phrase", "the white star", "the triangle", "--phrase", "the wall"]
    cli("ground", "--image", scenes / "scene0.png", *words, "--out", tmp_path / "out")
    record = read(tmp_path / "out" / "scene0.json")
    assert record["question"] is None and record["lam"] is None
    assert [phrase["text"] for phrase in record["phrases"]] == ["the white star", "the triangle", "the wall"]
    assert all(phrase["score"] is None for phrase in record["phrases"])
    said = capsys.readouterr().out
    assert "the white star" in said and "to the answer" not in said and last_line(said)["seconds"]["answer"] == 0


def test_answers_are_printed_with_brackets(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli("ground", "--image", scenes / "scene2.png", "--out", tmp_path / "out")
    said, record = capsys.readouterr().out, read(tmp_path / "out" / "scene2.json")
    streamed, _, rest = said.partition("\n\n")
    assert streamed.split() == record["text"].split()
    marked = rest.splitlines()[0]
    assert re.sub(r"\[\d+: (.*?)\]", r"\1", marked) == record["text"]
    assert re.findall(r"\[\d+: (.*?)\]", marked) == [phrase["text"] for phrase in record["phrases"]]
    assert "s to the answer" in rest and f"note: {NOTE}" in rest and "\x1b" not in said
    assert re.search(r"^decode +\d+\.\d+ +\d+\.\d %$", rest, re.MULTILINE)
    assert last_line(said)["file"] == str(tmp_path / "out" / "ground.json")


def test_one_bad_image_does_not_stop_the_others(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"text.png": b"no picture", "empty.jpg": b"", "large.png": header_of(20_000, 20_000)}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    hostile = tmp_path / "a\x1b[31m.png"
    shutil.copy(scenes / "scene2.png", hostile)
    out = tmp_path / "out"
    cli("ground", "--image", *(tmp_path / name for name in bad), hostile, scenes / "scene2.png", "--out", out)
    said = capsys.readouterr()
    errors = [line for line in said.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert [name for name in bad if sum(name in line for line in errors) == 1] == list(bad) and len(errors) == 3
    found = read(out / "ground.json")
    assert [Path(each["image"]).name for each in found["failures"]] == list(bad)
    assert found["results"] == ["a_[31m.json", "scene2.json"] and last_line(said.out)["failures"] == 3
    assert "\x1b[31m" not in said.out
    cli("ground", "--image", *(tmp_path / name for name in bad), "--out", tmp_path / "none", expect=2)
    assert "none of the 3 images was grounded" in capsys.readouterr().err.splitlines()[-1]


def test_a_rotated_photo_has_upright_masks(scenes: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # stored turned to the right: upright by a quarter to the left
    with Image.open(scenes / "scene0.png") as scene:
        scene.rotate(-90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    cli("ground", "--image", tmp_path / "a.jpg", "--phrase", "the triangle", "--out", tmp_path / "out")
    cli("ground", "--image", scenes / "scene0.png", "--phrase", "the triangle", "--out", tmp_path / "straight")
    turned, straight = (read(tmp_path / name) for name in ("out/a.json", "straight/scene0.json"))
    assert (turned["height"], turned["width"]) == (108, 144)
    first, second = (coco.decode(each["phrases"][0]["mask"]) for each in (turned, straight))
    assert (first & second).sum() / (first | second).sum() > 0.7


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--image: give an image file"),
        (["--image", "nothing.png"], "--image nothing.png is missing"),
        (["--image", "text.png"], "text.png can not be decoded"),
        (["--image", "empty.png"], "empty.png is empty"),
        (["--image", "large.png"], "more than the 134217728 pixels"),
        (["--image", "text.png", "--ask", "What?", "--phrase", "a dog"], "--ask changes nothing with --phrase"),
        (["--image", "text.png", "--lam", "0.5", "--phrase", "a dog"], "--lam changes nothing with --phrase"),
        (["--image", "text.png", "--seed", "3"], "--seed changes nothing without --own-settings"),
        (["--image", "text.png", "--ask", " "], "the question is empty"),
        (["--image", "text.png", "--phrase", " "], "--phrase: give the words"),
        (["--image", "text.png", "--lam", "0"], "--lam 0.0: must lie between 0 and 1"),
        (["--image", "text.png", "--max-answer-tokens", "0"], "must be at least 1"),
        (["--image", "text.png", "--side", "9"], "--side 9: must be between"),
        (["--image", "text.png", "--device", "cpu", "--gpus", "2"], "--gpus 2: must be between"),
        (["--image", "text.png", "--head", "nowhere"], "no head in nowhere"),
        (["--image", "text.png", "--out", "full"], "is not empty and holds no results of ground"),
    ],
)
def test_refusals_are_one_line(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"text.png": b"text", "empty.png": b"", "large.png": header_of(20_000, 20_000)}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    cli("ground", *args, expect=2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and says in error and "\n" not in error


def test_a_head_of_another_lmm_is_refused(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = tmp_path / "head"
    shutil.copytree(fetch_head("tiny"), head)
    config = read(head / "config.json")
    config["priors"]["lmm"]["dtype"] = "bfloat16"
    config["priors"]["lmm"]["template"] = "another"
    (head / "config.json").write_text(json.dumps(config))
    cli("ground", "--image", scenes, "--head", head, "--out", tmp_path / "out", expect=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "was trained on other priors" in error


def test_names_are_the_files_own_and_none_is_taken_twice() -> None:
    paths = [
        Path(p)
        for p in (
            "a/x.jpg",
            "b/X.png",
            "x-2.png",
            "ground.png",
            "...",
            "a/\x1b[0m.png",
            f"{'n' * 250}.png",
            f"{'語' * 80}.png",
            f"{'語' * 80}.jpg",
        )
    ]
    found = ground_files.names(paths)
    assert found == ["x", "X-2", "x-2-2", "ground-2", "image", "_[0m", "n" * 200, "語" * 66, f"{'語' * 66}-2"]
    assert len({name.casefold() for name in found}) == len(found)


def test_colours_on_a_terminal_unless_somebody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ground_text.marked("a red\x1b[2J ring", [(2, 5)]) == "a \x1b[1;38;2;214;31;105m1:red\x1b[0m\\x1b[2J ring"
    monkeypatch.setenv("NO_COLOR", "1")
    assert ground_text.marked("a red ring", [(2, 5)]) == "a [1: red] ring"
