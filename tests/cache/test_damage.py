"""A sound cache, one thing broken: it must be refused by `read`, named by `verify`, and never read as data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache import shard_files
from cache.layout import ArraySpec
from cache.store import Store
from cache.verify import repair, verify
from manifests.errors import CacheError
from tests.cache.caches import ARRAYS, PLANNED_FAILURES, fill, made, make, root_of, shard, texts, tree, values

END = ARRAYS[0].slots_per_unit * 16 + 4  # bytes of a shard's index and its crc


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << 3
    path.write_bytes(data)


PAYLOAD = {
    "bit of a chunk's values": lambda path: flip(path, 5 * 124 + 7),
    "bit of a chunk's crc": lambda path: flip(path, 6 * 124 - 1),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "of another unit": lambda path: path.write_bytes(shard(path.parents[2], 0).read_bytes()),
}
INDEX = {  # nothing that `read` looks at; other readers of Zarr do
    "bit of the index": lambda path: flip(path, -END + 5 * 16),
    "bit of the index's crc": lambda path: flip(path, -1),
}


@pytest.mark.parametrize("damage", PAYLOAD | INDEX)
def test_a_damaged_shard(tmp_path: Path, damage: str) -> None:
    sound = tree(root_of(made(tmp_path / "cache")))
    path = shard(tmp_path / "cache", 1)
    (PAYLOAD | INDEX)[damage](path)
    store = Store.open(tmp_path / "cache")
    if damage in PAYLOAD:
        with pytest.raises(CacheError, match=r"array attention, unit 1 is damaged.*run `cache verify --repair`"):
            store.read("attention", 10, 12)  # the last slot is padding, zeros, as a missing shard would read
    np.testing.assert_array_equal(store.read("attention", 0, 6), values(0)["attention"])
    problems = verify(store)
    assert [(p.unit, p.rows) for p in problems] == [(1, (1,))] and str(path) in problems[0].text
    assert repair(store, problems) == [1]
    assert verify(Store.open(tmp_path / "cache")) == []
    again = make(tmp_path / "cache")
    assert again.missing_units() == [1]
    fill(again)
    again.finish(PLANNED_FAILURES)
    assert tree(root_of(store)) == sound


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    path = shard(tmp_path / "cache", 0)
    sound = path.read_bytes()
    for position in range(0, len(sound), 11):
        flip(path, position)
        store = Store.open(tmp_path / "cache")
        assert [problem.unit for problem in verify(store)] == [0]
        if position < len(sound) - END:
            with pytest.raises(CacheError, match="is damaged"):
                store.read("attention", 0, 6)
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["attention"].__setitem__((2, 0), 0.5), "a map's mean is"),
        (lambda values: values["attention"].__setitem__((2, 0, 0, 0), -1), "values from -1 to"),
        (lambda values: values["attention"].__setitem__(3, 0), "slot 9 is planned and did not fail, and holds nothing"),
        (lambda values: values["attention"].__setitem__(5, 1), "slot 11 belongs to no row, and is not zero"),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, change: Callable[[dict], None], said: str) -> None:
    store = make(tmp_path / "cache")
    content = values(1)
    change(content)
    store.write_unit(1, content, {})
    assert [(problem.unit, said in problem.text) for problem in verify(store)] == [(1, True)]


def test_damage_that_only_an_extraction_can_mend(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    flip(tmp_path / "cache" / "rows.parquet", 9)
    store = Store.open(tmp_path / "cache", check_files=False)
    with pytest.raises(CacheError, match=r"rows\.parquet is damaged .*; run the same extract command again"):
        repair(store, verify(store))


def test_zarrs_own_files_are_written_anew(tmp_path: Path) -> None:
    sound = tree(root_of(made(tmp_path / "cache")))
    flip(tmp_path / "cache" / "priors.zarr" / "scale" / "zarr.json", 9)
    store = Store.open(tmp_path / "cache", check_files=False)
    assert repair(store, verify(store)) == []
    assert tree(tmp_path / "cache") == sound


def test_a_missing_commit(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    (tmp_path / "cache" / "commits" / "000002.json").unlink()
    store = Store.open(tmp_path / "cache")
    with pytest.raises(CacheError, match="unit 2, which is not extracted"):
        store.read("scale", 16, 17)
    assert [problem for problem in texts(store) if "000002.json is missing" in problem]


@pytest.mark.parametrize("source", ["flipped", "of another unit", "of another cache"])
def test_a_wrong_commit(tmp_path: Path, source: str) -> None:
    made(tmp_path / "cache")
    commit = tmp_path / "cache" / "commits" / "000002.json"
    if source == "flipped":
        flip(commit, 30)
    elif source == "of another unit":
        commit.write_bytes((tmp_path / "cache" / "commits" / "000001.json").read_bytes())
    else:
        other = make(tmp_path / "other", identity={"lmm": "other"})
        fill(other)
        commit.write_bytes((root_of(other) / "commits" / "000002.json").read_bytes())
    store = Store.open(tmp_path / "cache")
    for use in (lambda: store.read("scale", 16, 17), lambda: make(tmp_path / "cache")):
        with pytest.raises(CacheError, match=r"000002\.json.*run `cache verify --repair`, .* to redo unit 2"):
            use()
    problems = verify(store)
    assert [problem.unit for problem in problems] == [2]
    repair(store, problems)
    assert make(tmp_path / "cache").missing_units() == [2]


def test_a_resume_does_not_skip_a_committed_unit_whose_shard_is_gone(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    shard(tmp_path / "cache", 2).unlink()
    with pytest.raises(CacheError, match=r"unit 2 is damaged: .* is missing, 844 bytes were committed; run `cache"):
        make(tmp_path / "cache")


@pytest.mark.parametrize(
    "name",
    ["manifest.parquet", "rows.parquet", "failures.jsonl", "priors.zarr/zarr.json", "priors.zarr/scale/zarr.json"],
)
def test_damaged_metadata(tmp_path: Path, name: str) -> None:
    made(tmp_path / "cache")
    reader = Store.open(tmp_path / "cache")
    sound = tree(tmp_path / "cache")
    for damage in (lambda path: flip(path, 3), lambda path: path.unlink()):
        damage(tmp_path / "cache" / name)
        assert any(name in problem for problem in texts(reader))
        with pytest.raises(CacheError, match=rf"{name} .*; run the same extract command again to write it anew"):
            Store.open(tmp_path / "cache")
        again = make(tmp_path / "cache")  # it knows all that was there
        assert again.missing_units() == []
        again.finish(PLANNED_FAILURES)
        assert tree(tmp_path / "cache") == sound


def test_damaged_cache_json(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    path.write_text(path.read_text().replace('"units": 3', '"units": 2'))
    with pytest.raises(CacheError, match=r"cache\.json: its checksum does not match"):
        Store.open(tmp_path / "cache")


def test_too_many_open_files_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path / "cache")
    monkeypatch.setattr(shard_files.os, "open", _no_handles)
    with pytest.raises(CacheError, match="can not be read") as caught:
        store.read("attention", 0, 1)
    assert "repair" not in str(caught.value)


def _no_handles(*_: object) -> None:
    raise OSError(24, "Too many open files")


def test_a_damaged_commit_of_an_incomplete_cache_is_repaired(tmp_path: Path) -> None:
    store = make(tmp_path / "cache")
    store.write_unit(0, values(0), {})
    store.write_unit(1, values(1), {})
    flip(tmp_path / "cache" / "commits" / "000001.json", 30)
    store = Store.open(tmp_path / "cache")
    problems = verify(store)
    assert [problem.unit for problem in problems] == [1] and repair(store, problems) == [1]
    assert make(tmp_path / "cache").missing_units() == [1, 2]


def test_what_can_not_be_read_now_is_not_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path / "cache")
    monkeypatch.setattr(shard_files.os, "open", _no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        verify(store)


def test_a_cache_that_became_another_one_is_not_repaired(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    shard(tmp_path / "cache", 1).unlink()
    store = Store.open(tmp_path / "cache")
    problems = verify(store)
    make(tmp_path / "cache", identity={"lmm": "other"}, overwrite=True)
    before = tree(tmp_path / "cache")
    with pytest.raises(CacheError, match="was changed since it was verified"):
        repair(store, problems)
    assert tree(tmp_path / "cache") == before


def test_folders_and_files_of_zarr_that_are_gone_come_back(tmp_path: Path) -> None:
    sound = tree(root_of(made(tmp_path / "cache")))
    shutil.rmtree(tmp_path / "cache" / "priors.zarr" / "scale")
    store = Store.open(tmp_path / "cache", check_files=False)
    assert repair(store, verify(store)) == [0, 1, 2]
    fill(again := make(tmp_path / "cache"))
    again.finish(PLANNED_FAILURES)
    assert tree(tmp_path / "cache") == sound


def test_the_mass_of_a_maximum_over_words_may_exceed_one(tmp_path: Path) -> None:
    big = [ArraySpec(name="attention_mass", item_shape=(2,), dtype="float32", slots_per_unit=8)]
    for merge, problems in (("mean", 1), ("max", 0)):
        store = make(tmp_path / merge, arrays=big, units=1, identity={"merge": merge})
        store.write_unit(0, {"attention_mass": np.full((8, 2), 3, np.float32)}, {})
        assert len(verify(store)) == problems
