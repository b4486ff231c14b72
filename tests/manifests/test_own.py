"""A user's own photos: every way to give a mask, paths that leave the root, and one clear line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.masks import area, decode, encode
from manifests.own import read_own
from manifests.schema import Piece, problem

MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True
POLYGON = [2, 1, 7, 1, 7, 4, 2, 4]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "masks").mkdir(parents=True)
    Image.new("RGB", (8, 6), "white").save(root / "a.jpg")
    Image.new("L", (8, 6)).save(tmp_path / "outside.png")
    return root


def put(root: Path, *rows: Any) -> Path:
    (root / "samples.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return root


def line(mask: Any = None, **more: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "pieces": [{"text": "the mug", "mask": mask}, {"text": "."}], **more}


def test_defaults_and_given_values(root: Path) -> None:
    first, second = read_own(
        put(
            root,
            line({"polygon": POLYGON}),
            "",
            {
                "image": "a.jpg",
                "task": "narrative",
                "split": "kitchen",
                "pieces": [
                    {"text": "we see"},
                    {"text": "steam", "mask": {"polygon": POLYGON}, "is_thing": False},
                    {"text": "and", "mask": None},
                    {"text": "mugs", "mask": {"polygon": POLYGON}, "plural": True},
                ],
            },
        )
    )
    assert (first.sample_id, first.dataset, first.split, first.task) == (
        f"own/test/1-{first.sample_id[-8:]}",
        "own",
        "test",
        "referring",
    )
    assert (first.image_path, first.height, first.width) == ("a.jpg", 6, 8)
    assert first.pieces == (Piece(text="the mug", object=0), Piece(text=".")) and problem(first) is None
    assert first.objects[0].phrase == "the mug" and first.objects[0].is_thing and not first.objects[0].plural
    assert (second.sample_id, second.split, second.task) == (
        f"own/kitchen/3-{second.sample_id[-8:]}",
        "kitchen",
        "narrative",
    )
    assert [p.object for p in second.pieces] == [None, 0, None, 1]
    assert [(o.is_thing, o.plural) for o in second.objects] == [(False, False), (True, True)]


def mask_png(root: Path, mode: str) -> str:
    grey = Image.fromarray((MASK * 200).astype(np.uint8))
    image = {
        "L": grey,
        "1": Image.fromarray(MASK),
        "P": Image.fromarray((MASK * 3).astype(np.uint8)),
        "I;16": Image.fromarray((MASK * 256).astype(np.uint16)),
        "RGB": Image.merge("RGB", [Image.new("L", grey.size), grey, Image.new("L", grey.size)]),
        "RGBA": Image.merge("RGBA", [grey, grey, grey, Image.new("L", grey.size, 255)]),
        "LA": Image.merge("LA", [grey, Image.new("L", grey.size, 255)]),
    }[mode]
    if mode == "P":
        image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 9, 9, 9])
    image.save(root / "masks/m.png")
    with Image.open(root / "masks/m.png") as saved:
        assert saved.mode == mode
    return "masks/m.png"


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16", "RGB", "RGBA", "LA"])
def test_mask_png_of_every_mode(root: Path, mode: str) -> None:
    (sample,) = read_own(put(root, line(mask_png(root, mode))))
    assert np.array_equal(decode(sample.objects[0].mask), MASK)


def test_a_palette_says_what_is_black(root: Path) -> None:
    image = Image.fromarray(np.where(MASK, 0, 1).astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])  # number 0 is white, number 1 is black
    image.save(root / "masks/m.png")
    assert Image.open(root / "masks/m.png").mode == "P"
    (sample,) = read_own(put(root, line("masks/m.png")))
    assert np.array_equal(decode(sample.objects[0].mask), MASK)


def test_ids_are_the_same_every_time_and_of_two_folders_differ(root: Path) -> None:
    rows = [line({"polygon": POLYGON}), line({"polygon": POLYGON}, image="b.jpg")]
    first, second = read_own(put(root, *rows))
    assert [first, second] == read_own(root)
    other, _ = read_own(put(root, *rows[::-1]))  # as another folder would have it on its first line
    ids = {name for sample in (first, second, other) for name in (sample.sample_id, sample.objects[0].object_id)}
    assert len(ids) == 6


def test_a_file_that_begins_with_a_byte_order_mark(root: Path) -> None:
    put(root, line({"polygon": POLYGON}))
    path = root / "samples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_own(root)[0].image_path == "a.jpg"


@pytest.mark.parametrize(
    "mask", [{"polygon": POLYGON}, {"polygon": [POLYGON]}, {"rle": encode(MASK)}], ids=["flat", "nested", "rle"]
)
def test_masks_in_the_line(root: Path, mask: Any) -> None:
    (sample,) = read_own(put(root, line(mask)))
    assert np.array_equal(decode(sample.objects[0].mask), MASK)


@pytest.mark.parametrize(
    "escape", ["../outside.png", "ABSOLUTE", "link.png", "folder/outside.png", "masks/../../outside.png"]
)
@pytest.mark.parametrize("field", ["image", "mask"])
def test_paths_that_leave_the_root_are_refused(root: Path, escape: str, field: str) -> None:
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "folder").symlink_to(root.parent)
    path = str(root.parent / "outside.png") if escape == "ABSOLUTE" else escape
    row = line(path) if field == "mask" else line(image=path)
    with pytest.raises(DatasetError, match=r"samples\.jsonl, line 1: .*leaves the data root: copy the file"):
        read_own(put(root, row))


def test_a_link_inside_the_root_is_fine(root: Path) -> None:
    (root / "alias.jpg").symlink_to(root / "a.jpg")
    assert read_own(put(root, line({"polygon": POLYGON}, image="alias.jpg")))[0].image_path == "alias.jpg"


def test_a_root_that_is_itself_a_link_is_fine(root: Path) -> None:
    put(root, line({"polygon": POLYGON}))
    (root.parent / "alias").symlink_to(root)
    assert len(read_own(root.parent / "alias")) == 1


SMALL = encode(np.ones((2, 2), bool))


@pytest.mark.parametrize(
    "row, words",
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object: it needs image, pieces"),
        ({"image": "a.jpg"}, "the line lacks pieces: add it"),
        (line(colour=1), "the line has an unknown key colour: known are image, pieces, task, split"),
        (line(task=3), "wrong type under task"),
        (line(task="poem"), "task 'poem' is unknown: use one of referring, narrative"),
        (line(split=" "), "split must not be empty"),
        (line({"rle": [1]}), "piece 0: a mask's rle is"),
        (line({"box": [0, 0, 1, 1]}), r"piece 0: a mask is a png's path, .* not an object with \['box'\]"),
        (line(5), "piece 0: it has a value of the wrong type under mask"),
        ({"image": "a.jpg", "pieces": [{"text": "."}, "mug"]}, "piece 1: it is not a JSON object"),
        ({"image": "a.jpg", "pieces": [{"mask": None}]}, "piece 0: it lacks text"),
        ({"image": "a.jpg", "pieces": [{"text": "a", "Plural": True}]}, "piece 0: it has an unknown key Plural"),
    ],
)
def test_each_mistake_is_one_line_with_its_number(root: Path, row: Any, words: str) -> None:
    with pytest.raises(DatasetError, match=rf"samples\.jsonl, line 3: .*{words}") as caught:
        read_own(put(root, line({"polygon": POLYGON}), "", row))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row, reason",
    [
        (line({"polygon": POLYGON}, image="b.jpg"), "image 'b.jpg' is missing: put it there or correct the path"),
        (
            line({"polygon": POLYGON}, image="samples.jsonl"),
            "image 'samples.jsonl' can not be decoded: replace the file",
        ),
        (line({"polygon": POLYGON}, image="masks"), "image 'masks' can not be decoded: replace the file"),
        (line("masks/none.png"), "piece 0: mask 'masks/none.png' is missing: put it there or correct the path"),
        (line("samples.jsonl"), "piece 0: mask 'samples.jsonl' can not be decoded: save it again as png"),
        (
            line("small.png"),
            "piece 0: mask 'small.png' is 3x2 pixels, the photo 8x6 as stored *: save both at one size",
        ),
        (line({"rle": SMALL}), "piece 0: the rle is [2, 2], the photo [6, 8]: give it at the photo's size"),
        (
            line({"rle": {"size": [6, 8], "counts": "o"}}),
            "piece 0: its rle is broken (not a compressed RLE *): correct it",
        ),
        (line({"polygon": "round"}), "piece 0: its polygon is broken (a polygon is a list of numbers *): correct it"),
        (line({"polygon": [0, 0, 1e12, 0, 5, 5]}), "piece 0: its polygon is broken (* lie far outside *): correct it"),
    ],
)
def test_a_photo_or_mask_that_can_not_be_used_is_its_samples_error_alone(root: Path, row: Any, reason: str) -> None:
    Image.new("L", (3, 2)).save(root / "small.png")
    good = line({"polygon": POLYGON})
    first, bad, last = read_own(put(root, good, row, good))
    assert problem(first) is None and problem(last) is None
    pattern = ".*".join(map(re.escape, f"samples.jsonl, line 2: {reason}".split("*")))
    assert re.fullmatch(pattern, str(problem(bad))) and str(root) not in str(bad.error), bad.error
    assert [p.object for p in bad.pieces] == [0, None] and area(bad.objects[0].mask) == 0  # still counted, as a miss
    write_manifest(root / "m", [first, bad, last], {})
    assert list(Samples(root / "m")) == [first, bad, last]


def test_a_line_without_pieces_is_left_to_the_planner_and_a_missing_photo_hides_no_path_that_escapes(
    root: Path,
) -> None:
    (sample,) = read_own(put(root, {"image": "a.jpg", "pieces": []}))
    assert str(problem(sample)).startswith(f"sample {sample.sample_id} has no object to ground: give")
    with pytest.raises(DatasetError, match=r"line 1: piece 0: path '\.\./outside\.png' leaves the data root"):
        read_own(put(root, line("../outside.png", image="b.jpg")))


def test_missing_and_empty_list(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"samples\.jsonl can not be read .*write one JSON line per image"):
        read_own(root)
    with pytest.raises(DatasetError, match=r"samples\.jsonl is empty"):
        read_own(put(root, "", " "))
