"""ReasonSeg's reader: every trap of its format in hand-written files; masks painted again by Pillow's rectangles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.build import build
from manifests.errors import DatasetError
from manifests.masks import decode, empty
from manifests.pictures import MAX_PIXELS
from manifests.reasonseg import image_paths, read_reasonseg
from manifests.schema import Sample, problem

HEIGHT, WIDTH = 20, 30


def box(label: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    return {"label": label, "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}


def put(
    root: Path, shapes: Any, text: Any = ("the thing",), long: Any = False, *, name: str = "a", split: str = "val",
    size: tuple[int, int] = (HEIGHT, WIDTH), encoding: str = "utf-8",
) -> Path:  # fmt: skip
    folder = root / "reason_seg/ReasonSeg" / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(folder / f"{name}.jpg")
    row = {"shapes": shapes, "text": list(text) if isinstance(text, tuple) else text, "is_sentence": long}
    (folder / f"{name}.json").write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    return root


def read(root: Path, split: str = "val", **options: Any) -> list[Sample]:
    return list(read_reasonseg(root, split, **options))


def pixels(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    (item,) = sample.objects
    return decode(item.mask), decode(item.ignore or empty(sample.height, sample.width))


def test_a_sample(tmp_path: Path) -> None:
    (sample,) = read(put(tmp_path, [box("target", 2, 3, 9, 8)], (" Who could sleep here? ",), True))
    assert (sample.sample_id, sample.dataset, sample.split) == ("reasonseg/val/a-0", "reasonseg", "val")
    assert (sample.task, sample.pieces, sample.group) == ("reasoning", (), "long")
    assert (sample.image_id, sample.image_path) == ("a", "reason_seg/ReasonSeg/val/a.jpg")
    assert (sample.height, sample.width) == (HEIGHT, WIDTH)
    assert sample.objects[0].phrase == "Who could sleep here?"
    assert sample.prompt == "Who could sleep here? Briefly answer the question in a single sentence."
    mask, ignore = pixels(sample)
    assert mask[3:9, 2:10].all() and mask.sum() == 6 * 8 and not ignore.any()  # the outline belongs to it
    assert sample.objects[0].ignore is None and sample.objects[0].object_id == "reasonseg/val/a"
    assert (
        problem(sample) == "sample reasonseg/val/a-0 is a question without an answer to ground: extract with --answer"
    )


@pytest.mark.parametrize(
    "text, long, prompt, group",
    [
        ("the red cup", False, "What is the red cup in this image?", "short"),
        ("what colour is the ring ?", False, "what colour is the ring ?", "short"),
        ("Show me where to sit.", True, "Show me where to sit.", "long"),
        ("the red cup", 0, "What is the red cup in this image?", "short"),
    ],
)
def test_how_a_query_is_asked(tmp_path: Path, text: str, long: Any, prompt: str, group: str) -> None:
    put(tmp_path, [], (text,), long)
    (sample,) = read(tmp_path, ending="")
    assert (sample.prompt, sample.group, sample.objects[0].phrase) == (prompt, group, text)
    assert read(tmp_path)[0].prompt == f"{prompt} Briefly answer the question in a single sentence."


def test_several_texts_are_one_sample_or_each_one(tmp_path: Path) -> None:
    put(tmp_path, [box("target", 1, 1, 5, 5)], ("a?", "b?", "c?"), True, split="train")
    (first,) = read(tmp_path, "train")
    every = read(tmp_path, "train", sentences="all")
    assert [s.prompt.split()[0] for s in every] == ["a?", "b?", "c?"] and every[0] == first
    assert len({s.sample_id for s in every}) == 3 and len({s.objects[0].object_id for s in every}) == 1


def test_the_smaller_shape_wins_and_flags_are_skipped(tmp_path: Path) -> None:
    large, small = (2, 2, 25, 17), (5, 5, 9, 9)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[5:10, 5:10] = True
    for order in (1, -1):  # of the file, which must not matter
        shapes = [box("target", *large), box("ignore", *small), box("Flag", 0, 0, 29, 19)][::order]
        mask, ignore = pixels(read(put(tmp_path, shapes))[0])
        assert np.array_equal(ignore, inside) and mask.sum() == 24 * 16 - 25 and not (mask & ignore).any()
        shapes = [box("Ignored region", *large), box("target", *small)][::order]
        mask, ignore = pixels(read(put(tmp_path, shapes))[0])
        assert np.array_equal(mask, inside) and ignore.sum() == 24 * 16 - 25
    # a label with "flag" in it is not the label "flag"
    assert pixels(read(put(tmp_path, [box("flagpole", 1, 1, 2, 2)]))[0])[0].sum() == 4


def test_of_equal_shapes_the_earlier_wins(tmp_path: Path) -> None:
    shapes = [box("target", 1, 1, 4, 4), box("ignore", 3, 1, 6, 4)]
    mask, ignore = pixels(read(put(tmp_path, shapes))[0])
    assert (mask.sum(), ignore.sum()) == (16, 8)
    mask, ignore = pixels(read(put(tmp_path, shapes[::-1]))[0])
    assert (mask.sum(), ignore.sum()) == (8, 16)


BOXES = st.tuples(st.booleans(), st.integers(0, 29), st.integers(0, 19), st.integers(0, 29), st.integers(0, 19))


@settings(max_examples=60, deadline=None)
@given(st.lists(BOXES, max_size=6))
def test_boxes_painted_again(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[bool, int, int, int, int]]
) -> None:
    places = [(ignored, sorted((a, c)), sorted((b, d))) for ignored, a, b, c, d in boxes]
    canvas = np.zeros((HEIGHT, WIDTH), int)
    areas = [(x[1] - x[0] + 1) * (y[1] - y[0] + 1) for _, x, y in places]
    for k in np.argsort(areas, kind="stable")[::-1]:
        ignored, x, y = places[k]
        canvas[y[0] : y[1] + 1, x[0] : x[1] + 1] = 255 if ignored else 1
    shapes = [box("ignore" if ignored else "target", x[0], y[0], x[1], y[1]) for ignored, x, y in places]
    (sample,) = read(put(tmp_path_factory.mktemp("r"), shapes))
    mask, ignore = pixels(sample)
    assert np.array_equal(mask, canvas == 1) and np.array_equal(ignore, canvas == 255)


def test_an_empty_mask_is_legal(tmp_path: Path) -> None:
    for shapes in ([], [box("flag", 1, 1, 4, 4)], [box("target", 2, 2, 5, 5), box("ignore", 2, 2, 5, 5)][::-1]):
        (sample,) = read(put(tmp_path, shapes))
        assert sample.objects[0].mask == empty(HEIGHT, WIDTH) and sample.error is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_utf8_else_code_page_1252(tmp_path: Path, encoding: str) -> None:
    (sample,) = read(put(tmp_path, [], ("the café’s sign",), encoding=encoding))
    assert sample.objects[0].phrase == "the café’s sign"


def test_points_beyond_the_image_are_cut_off(tmp_path: Path) -> None:
    mask, _ = pixels(read(put(tmp_path, [box("target", -10, -5, 4, 3)]))[0])
    assert mask[:4, :5].all() and mask.sum() == 20


def test_order_and_a_json_or_jpg_that_is_missing(tmp_path: Path) -> None:
    for name in "cab":
        put(tmp_path, [box("target", 1, 1, 5, 5)], name=name)
    folder = tmp_path / "reason_seg/ReasonSeg/val"
    (folder / "b.jpg").unlink()
    (folder / "a.json").unlink()
    (folder / "readme.txt").write_text("no image")
    a, b, c = read(tmp_path)
    assert str(a.error).startswith("a.json is missing or can not be read: get ReasonSeg as https://github.com/dvlab")
    assert b.error == "b.jpg is missing: put it there" and b.objects[0].phrase == "the thing"
    assert c.error is None
    assert [s.image_path for s in (a, b, c)] == list(image_paths(tmp_path, "val"))
    assert all(len(s.objects) == 1 for s in (a, b, c))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"shapes": 3}, r"a\.json: a record has no proper shapes"),
        ({"shapes": [3]}, r"a\.json: shapes: a record has no proper label, points"),
        (
            {"shapes": [{"label": "target", "points": [[1, 2], [3]]}]},
            r"a\.json: shape 0 is a polygon with a point that",
        ),
        ({"shapes": [{"label": "target", "points": [[1, True]]}]}, r"shape 0 is a polygon with a point that is not \["),
        ({"shapes": [{"label": "target", "points": []}]}, r"shape 0 is a polygon without points: correct it"),
        ({"shapes": [{"label": "target", "points": [[1, 1e9]]}]}, r"point far outside the image of 20x30 pixels"),
        ({"shapes": [{"label": "target", "points": [[1, float("nan")]]}]}, r"point far outside the image"),
        ({"shapes": [{"label": "target", "points": [[1, 10**400]]}]}, r"point far outside the image"),
        ({"shapes": [box("target", 0, 0, 1, 1)] * 1001}, r"has 1001 shapes, 1000 are allowed"),
        ({"text": []}, r"a\.json: text is not a list of one question or more"),
        ({"text": [3]}, r"a\.json: text is not a list"),
        ({"text": "who?"}, r"a\.json: a record has no proper text"),
        ({"text": ["  "]}, r"a\.json: text 0 is empty: correct it"),
        ({"text": ["x" * 1_000_000]}, r"a\.json: text 0 has 1000000 characters, 10000 are allowed"),
        ({"is_sentence": None}, r"a\.json: a record has no proper is_sentence"),
    ],
)
def test_a_broken_record_is_the_error_of_its_sample(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    put(tmp_path, [], name="b")
    good = {"shapes": [box("target", 1, 1, 5, 5)], "text": ["who?"], "is_sentence": True}
    put(tmp_path, [])
    (tmp_path / "reason_seg/ReasonSeg/val/a.json").write_text(json.dumps(good | change))
    bad, fine = read(tmp_path)
    assert re.search(words, str(problem(bad))), problem(bad)
    assert "\n" not in str(problem(bad)) and str(tmp_path) not in str(bad.error)
    assert len(bad.objects) == 1 and fine.error is None


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"text\nline"', b'{"text": ["\\ud800"]}'])
def test_what_is_no_json(tmp_path: Path, data: bytes) -> None:
    put(tmp_path, [])
    (tmp_path / "reason_seg/ReasonSeg/val/a.json").write_bytes(data)
    (sample,) = read(tmp_path)
    assert sample.error and sample.error.startswith("a.json") and "\n" not in sample.error


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    put(tmp_path, [])
    (tmp_path / "reason_seg/ReasonSeg/val/a.json").write_bytes(
        b'{"shapes": [], "text": ["who \\ud800?"], "is_sentence": true}'
    )
    (sample,) = read(tmp_path)
    assert sample.error == "a.json: text 0 is not Unicode: correct it" and sample.prompt.isascii()


def test_a_decompression_bomb_and_a_broken_picture(tmp_path: Path) -> None:
    jpg = put(tmp_path, [box("target", 1, 1, 4, 4)]) / "reason_seg/ReasonSeg/val/a.jpg"
    data = jpg.read_bytes()
    at = data.index(b"\xff\xc0")  # start of frame: length, precision, height, width
    jpg.write_bytes(data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :])
    assert read(tmp_path)[0].error == f"a.jpg has more than the {MAX_PIXELS} pixels that are allowed: replace it"
    jpg.write_bytes(data[: at + 5] + b"\x2e\xe1\x2e\xe8" + data[at + 9 :])
    assert f"a.jpg is 12001x12008 pixels, more than the {MAX_PIXELS}" in str(read(tmp_path)[0].error)
    jpg.write_bytes(data[:20])
    assert read(tmp_path)[0].error == "a.jpg can not be decoded: download it again"


def test_missing_folder_and_unknown_choices(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"ReasonSeg/val is missing: get ReasonSeg as .*layout: reason_seg/Reason"):
        read_reasonseg(tmp_path, "val")  # at the call, before any iteration
    (tmp_path / "reason_seg/ReasonSeg/val").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no jpg and no json"):
        read_reasonseg(tmp_path, "val")
    with pytest.raises(DatasetError, match="no split 'testA'; it has train, val, test"):
        read_reasonseg(tmp_path, "testA")
    with pytest.raises(DatasetError, match="sentences is first or all, got 'last'"):
        read_reasonseg(tmp_path, "val", sentences="last")  # type: ignore[arg-type]


def test_by_name(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path, [box("target", 1, 1, 4, 4)], ("a?", "b?"), True, split=split)
    samples = build("reasonseg", tmp_path)
    assert [s.split for s in samples] == ["train", "val", "test"]
    assert len(build("reasonseg", tmp_path, sentences="all")) == 6
