"""The manifest's round trip, its bytes, what it refuses; and that a sample is read when it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.masks import encode
from manifests.schema import Object, Piece, Reply, Sample
from tests.manifests.test_schema import sample

OBJECTS = st.builds(
    Object,
    object_id=st.text(),
    mask=st.builds(lambda h, w, on: encode(np.full((h, w), on)), st.integers(1, 9), st.integers(1, 9), st.booleans()),
    is_thing=st.booleans(),
    plural=st.booleans(),
    category=st.text(),
    phrase=st.text(),
    ignore=st.none() | st.just(encode(np.eye(3, dtype=bool))),
)
REPLIES = st.builds(
    lambda words, text, finished: Reply(ids=tuple(words), words=tuple(words), text=text, finished=finished),
    st.lists(st.integers(0, 2**31 - 1), max_size=4),
    st.text(),
    st.booleans(),
)
SAMPLES = st.builds(
    Sample,
    sample_id=st.text(),
    dataset=st.sampled_from(["refcoco", "png", "own"]),
    split=st.text(),
    task=st.sampled_from(["referring", "narrative", "reasoning", "conversation"]),
    image_id=st.text(),
    image_path=st.sampled_from(["a.jpg", "train2014/b c.jpg", "ä/ö.png"]),
    height=st.integers(1, 2**31 - 1),
    width=st.integers(1, 2**31 - 1),
    prompt=st.text(),
    pieces=st.lists(st.builds(Piece, text=st.text(), object=st.none() | st.integers(0, 9)), max_size=4).map(tuple),
    objects=st.lists(OBJECTS, max_size=3).map(tuple),
    group=st.text(),
    reply=st.none() | REPLIES,
    error=st.none() | st.text(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(SAMPLES, max_size=4, unique_by=lambda s: s.sample_id))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.parquet"
    write_manifest(path, samples, {"n": len(samples), "nested": {"ä": [1, None]}})
    assert list(Samples(path)) == samples
    assert Samples(path).meta == {"n": len(samples), "nested": {"ä": [1, None]}}
    assert [p.name for p in path.parent.iterdir()] == ["manifest.parquet"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name, meta in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1}), ("c", {"x": 1, "y": 3})):
        write_manifest(tmp_path / name, [sample(), sample(sample_id="t")], meta)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_refuses_the_same_id_twice_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, [sample()], {})
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="two samples are called s"):
        write_manifest(path, [sample(), sample()], {})
    with pytest.raises(DatasetError, match="half a character"):
        write_manifest(path, [sample(prompt="\ud800")], {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_is_not_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing: build it"):
        Samples(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DatasetError, match="not a readable Parquet"):
        Samples(tmp_path / "text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(DatasetError, match="not a manifest"):
        Samples(tmp_path / "other")
    header = {"manifest": '{"version": 99, "meta": {}}'}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(header), tmp_path / "newer")
    with pytest.raises(DatasetError, match="version 99, this program reads 3"):
        Samples(tmp_path / "newer")
    write_manifest(tmp_path / "older", [sample()], {})
    old = pq.read_table(tmp_path / "older").drop_columns("error")  # version 1 had no such column
    pq.write_table(old.replace_schema_metadata({"manifest": '{"version": 1, "meta": {}}'}), tmp_path / "older")
    with pytest.raises(DatasetError, match="version 1, this program reads 3: build it again"):
        Samples(tmp_path / "older")


def test_a_manifest_edited_to_leave_the_root_or_with_an_unknown_task_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m", [sample()], {})
    table = pq.read_table(tmp_path / "m")
    for column, value, why in (("image_path", "../secret", "leaves the data root"), ("task", "draw", "'draw' is none")):
        index = table.schema.get_field_index(column)
        edited = table.set_column(index, table.schema.field(index), pa.array([value]))
        pq.write_table(edited, tmp_path / "edited")
        with pytest.raises(DatasetError, match=why):
            list(Samples(tmp_path / "edited"))
