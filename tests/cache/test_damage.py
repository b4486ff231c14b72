"""A sound cache, one thing broken: it must be refused by `read`, named by `verify`, and never read as data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.store import Store
from manifests.errors import CacheError
from tests.cache.caches import ARRAYS, fill, made, make, shard, tree, values

INDEX = ARRAYS[0].slots_per_unit * 16 + 4


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << 3
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: flip(path, 5 * 124 + 7), id="bit of a chunk's values"),
        pytest.param(lambda path: flip(path, 6 * 124 - 1), id="bit of a chunk's crc"),
        pytest.param(lambda path: flip(path, -INDEX + 5 * 16), id="bit of the index"),
        pytest.param(lambda path: flip(path, -1), id="bit of the index's crc"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-40]), id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0"), id="longer"),
        pytest.param(lambda path: path.unlink(), id="missing"),
    ],
)
def test_a_damaged_shard(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    sound = tree(made(tmp_path / "cache").root)
    path = shard(tmp_path / "cache", 1)
    damage(path)
    store = Store.open(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"array attention, unit 1 is damaged.*delete .*000001\.json and run extract"):
        store.read("attention", 11, 12)  # the last slot: it is padding, zeros, as a missing shard would read
    np.testing.assert_array_equal(store.read("attention", 0, 6), values(0)["attention"])
    assert len(problems := store.verify()) == 1 and str(path) in problems[0]
    (store.root / "commits" / "000001.json").unlink()  # the cure that the message names
    again = make(tmp_path / "cache")
    assert again.missing_units() == [1]
    fill(again)
    again.finish([{"sample": 9, "reason": "no pixels"}])
    assert tree(store.root) == sound


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    path = shard(tmp_path / "cache", 0)
    sound = path.read_bytes()
    for position in range(0, len(sound), 11):
        flip(path, position)
        with pytest.raises(CacheError, match="is damaged"):
            Store.open(tmp_path / "cache").read("attention", 0, 6)
        path.write_bytes(sound)


def test_a_missing_commit(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    (tmp_path / "cache" / "commits" / "000002.json").unlink()
    store = Store.open(tmp_path / "cache")
    with pytest.raises(CacheError, match="unit 2, which is not extracted"):
        store.read("scale", 16, 17)
    assert [problem for problem in store.verify() if "000002.json is missing" in problem]


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
        commit.write_bytes((other.root / "commits" / "000002.json").read_bytes())
    store = Store.open(tmp_path / "cache")
    for use in (lambda: store.read("scale", 16, 17), store.missing_units, lambda: make(tmp_path / "cache")):
        with pytest.raises(CacheError, match=r"000002\.json.*delete this file and extract again to redo unit 2"):
            use()
    assert len(store.verify()) == 1


def test_a_resume_does_not_skip_a_committed_unit_whose_shard_is_gone(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    shard(tmp_path / "cache", 2).unlink()
    with pytest.raises(CacheError, match=r"unit 2 is damaged: .* is missing, 844 bytes were committed; delete "):
        make(tmp_path / "cache")


@pytest.mark.parametrize(
    "name",
    ["manifest.parquet", "rows.parquet", "failures.jsonl", "priors.zarr/zarr.json", "priors.zarr/scale/zarr.json"],
)
def test_damaged_metadata(tmp_path: Path, name: str) -> None:
    made(tmp_path / "cache")
    reader = Store.open(tmp_path / "cache")
    flip(tmp_path / "cache" / name, 3)
    assert any(name in problem for problem in reader.verify())
    for use in (Store.open, make):
        with pytest.raises(CacheError, match=rf"{name} is damaged or was changed"):
            use(tmp_path / "cache")
    (tmp_path / "cache" / name).unlink()
    with pytest.raises(CacheError, match=rf"{name} can not be read"):
        Store.open(tmp_path / "cache")
    assert make(tmp_path / "cache", overwrite=True).missing_units() == [0, 1, 2]


def test_damaged_cache_json(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    path.write_text(path.read_text().replace('"units": 3', '"units": 2'))
    with pytest.raises(CacheError, match=r"cache\.json: its checksum does not match"):
        Store.open(tmp_path / "cache")


def test_too_many_open_files_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path / "cache")
    monkeypatch.setattr(store, "_array", _no_handles)
    with pytest.raises(CacheError, match="can not be read") as caught:
        store.read("attention", 0, 1)
    assert "delete" not in str(caught.value)


def _no_handles(_: object) -> None:
    raise OSError(24, "Too many open files")
