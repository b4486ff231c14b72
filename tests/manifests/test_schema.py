"""The manifest's round trip, its bytes, what it refuses, and what the planner is told about unusable samples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import DatasetError
from manifests.masks import empty, encode
from manifests.schema import (
    DEFAULT_PROMPT,
    Object,
    Piece,
    Sample,
    leaves_root,
    manifest_meta,
    problem,
    read_manifest,
    write_manifest,
)

OBJECTS = st.builds(
    Object,
    object_id=st.text(),
    mask=st.builds(lambda h, w, on: encode(np.full((h, w), on)), st.integers(1, 9), st.integers(1, 9), st.booleans()),
    is_thing=st.booleans(),
    plural=st.booleans(),
    category=st.text(),
    phrase=st.text(),
)
SAMPLES = st.builds(
    Sample,
    sample_id=st.text(),
    dataset=st.sampled_from(["refcoco", "png", "own"]),
    split=st.text(),
    task=st.sampled_from(["referring", "narrative"]),
    image_id=st.text(),
    image_path=st.sampled_from(["a.jpg", "train2014/b c.jpg", "ä/ö.png"]),
    height=st.integers(1, 2**31 - 1),
    width=st.integers(1, 2**31 - 1),
    prompt=st.text(),
    pieces=st.lists(st.builds(Piece, text=st.text(), object=st.none() | st.integers(0, 9)), max_size=4).map(tuple),
    objects=st.lists(OBJECTS, max_size=3).map(tuple),
    error=st.none() | st.text(),
)


def sample(**changes: object) -> Sample:
    """A sound sample of two objects."""
    mask = encode(np.eye(4, 6, dtype=bool))
    parts = [
        Object(object_id=f"o{i}", mask=mask, is_thing=True, plural=False, category="x", phrase="p") for i in (0, 1)
    ]
    sound = Sample(
        sample_id="s",
        dataset="refcoco",
        split="val",
        task="referring",
        image_id="1",
        image_path="a/b.jpg",
        height=4,
        width=6,
        pieces=(Piece(text="one", object=0), Piece(text="."), Piece(text="two", object=1)),
        objects=tuple(parts),
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(SAMPLES, max_size=4, unique_by=lambda s: s.sample_id))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.parquet"
    write_manifest(path, samples, {"n": len(samples), "nested": {"ä": [1, None]}})
    assert read_manifest(path) == samples
    assert manifest_meta(path) == {"n": len(samples), "nested": {"ä": [1, None]}}
    assert [p.name for p in path.parent.iterdir()] == ["manifest.parquet"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name, meta in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1}), ("c", {"x": 1, "y": 3})):
        write_manifest(tmp_path / name, [sample(), sample(sample_id="t")], meta)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_default_prompt() -> None:
    assert sample().prompt == DEFAULT_PROMPT == "Please give me a description of the image."


def test_refuses_the_same_id_twice_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, [sample()], {})
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="two samples are called s"):
        write_manifest(path, [sample(), sample()], {})
    with pytest.raises(DatasetError, match="outside the schema"):
        write_manifest(path, [sample(prompt="\ud800")], {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_is_not_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing: build it"):
        read_manifest(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DatasetError, match="not a readable Parquet"):
        read_manifest(tmp_path / "text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(DatasetError, match="not a manifest"):
        read_manifest(tmp_path / "other")
    header = {"manifest": '{"version": 99, "meta": {}}'}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(header), tmp_path / "newer")
    with pytest.raises(DatasetError, match="version 99, this program reads 2"):
        manifest_meta(tmp_path / "newer")
    write_manifest(tmp_path / "older", [sample()], {})
    old = pq.read_table(tmp_path / "older").drop_columns("error")  # version 1 had no such column
    pq.write_table(old.replace_schema_metadata({"manifest": '{"version": 1, "meta": {}}'}), tmp_path / "older")
    with pytest.raises(DatasetError, match="version 1, this program reads 2: build it again"):
        read_manifest(tmp_path / "older")


def test_a_manifest_edited_to_leave_the_root_or_with_an_unknown_task_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m", [sample()], {})
    table = pq.read_table(tmp_path / "m")
    for column, value, why in (("image_path", "../secret", "leaves the data root"), ("task", "draw", "'draw' is none")):
        index = table.schema.get_field_index(column)
        edited = table.set_column(index, table.schema.field(index), pa.array([value]))
        pq.write_table(edited, tmp_path / "edited")
        with pytest.raises(DatasetError, match=why):
            read_manifest(tmp_path / "edited")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a", "a/../../b", "C:\\a", "c:/a", "\\\\host\\a", "a\\..\\b", "", " ", "a\0"]
)
def test_paths_that_leave_the_root(path: str) -> None:
    assert leaves_root(path)
    with pytest.raises(DatasetError, match=r"sample s: image path .* leaves the data root"):
        sample(image_path=path)


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "a/..b.jpg", "ä ö/c.png", "./a.jpg"])
def test_paths_that_stay(path: str) -> None:
    assert not leaves_root(path) and sample(image_path=path).image_path == path


def test_a_sound_sample_has_no_problem_and_the_readers_error_comes_first() -> None:
    assert problem(sample()) is None
    assert problem(sample(error="line 3: no photo", objects=())) == "line 3: no photo"


def _objects(index: int, **changes: object) -> tuple[Object, ...]:
    objects = list(sample().objects)
    objects[index] = replace(objects[index], **changes)  # type: ignore[arg-type]
    return tuple(objects)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"pieces": (Piece(text="one", object=0), Piece(text=" ", object=1))},
            "object o1 has an empty text: give it words",
        ),
        ({"pieces": (Piece(text="one", object=0),)}, "no text speaks of object o1: give it a piece of the text"),
        (
            {"pieces": (Piece(text="one", object=2),)},
            "sample s: .* belongs to object 2, there are 2.*: correct the index",
        ),
        ({"pieces": (Piece(text="one", object=-1),)}, "sample s: .* belongs to object -1.*: correct the index"),
        ({"pieces": (Piece(text="hello"),), "objects": ()}, "sample s has no object to ground: give a piece .* a mask"),
        ({"objects": _objects(1, mask=empty(4, 6))}, "object o1 has no pixels: correct its annotation"),
        (
            {"objects": _objects(0, mask=empty(6, 4))},
            r"object o0 is 6x4 pixels \(height x width\), its image 4x6: give the mask at the image's size",
        ),
        (
            {"objects": _objects(0, mask={"size": [4, 6], "counts": "o"})},
            r"object o0 can not be decoded \(.*\): correct its annotation",
        ),
    ],
)
def test_problem_names_the_object_and_the_cure(changes: dict[str, object], words: str) -> None:
    found = problem(sample(**changes))
    assert found is not None and re.search(words, found), found
