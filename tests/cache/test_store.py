from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cache import shard_files
from cache.layout import ArraySpec
from cache.store import Store
from manifests.errors import CacheError
from tests.cache.caches import (
    ARRAYS,
    FILES,
    UNITS,
    fill,
    made,
    make,
    record,
    root_of,
    texts,
    tree,
    values,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    store = pickle.loads(pickle.dumps(Store.open(tmp_path / "cache")))
    whole = {spec.name: np.concatenate([values(unit)[spec.name] for unit in range(UNITS)]) for spec in ARRAYS}
    for name, start, stop in [("attention", 0, 18), ("attention", 5, 7), ("attention", 4, 13), ("scale", 7, 9)]:
        unchecked = store.read(name, start, stop, check=False)
        np.testing.assert_array_equal(unchecked, whole[name][start:stop], strict=True)
        np.testing.assert_array_equal(store.read(name, start, stop), whole[name][start:stop], strict=True)
    assert store.read("attention", 4, 4).shape == (0, 3, 4, 5)
    assert texts(store) == []
    for wrong in [("attention", -1, 2), ("attention", 3, 2), ("attention", 0, 19), ("other", 0, 1)]:
        with pytest.raises(CacheError, match="has no"):
            store.read(*wrong)


def test_the_same_plan_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    made(tmp_path / "one")
    store = make(tmp_path / "two")
    for unit in (2, 0, 1):
        store.write_unit(unit, values(unit), record(unit))
    store.finish([{"sample": 9, "reason": "no pixels"}])
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert not any(str(tmp_path).encode() in data for data in tree(tmp_path / "one").values() if data)


def test_only_committed_units_exist(tmp_path: Path) -> None:
    store = make(tmp_path / "cache")
    store.write_unit(1, values(1), record(1))
    assert (store.committed_units(), store.missing_units()) == ([1], [0, 2])
    reader = Store.open(tmp_path / "cache")
    np.testing.assert_array_equal(reader.read("attention", 6, 12), values(1)["attention"])
    for start, stop in ((0, 1), (11, 13), (17, 18)):
        with pytest.raises(CacheError, match="not extracted yet"):
            reader.read("attention", start, stop)
    with pytest.raises(CacheError, match="2 of 3 units are missing"):
        store.finish()
    fill(make(tmp_path / "cache"))
    np.testing.assert_array_equal(reader.read("attention", 0, 6), values(0)["attention"])


def test_failures_are_sorted_and_kept(tmp_path: Path) -> None:
    store = made(tmp_path / "cache")
    entries = [json.loads(line) for line in (root_of(store) / "failures.jsonl").read_text().splitlines()]
    assert [entry["sample"] for entry in entries] == [9, 18, 19, 20]
    assert entries == store.failures() == Store.open(root_of(store)).failures()
    before = tree(root_of(store))
    store.finish([{"sample": 9, "reason": "no pixels"}])
    assert tree(root_of(store)) == before
    with pytest.raises(CacheError, match="complete with other failures"):
        store.finish()
    with pytest.raises(CacheError, match="a failure must be"):
        store.finish([{"image": 9, "reason": "no pixels"}])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_refused_by_slot(tmp_path: Path, bad: float) -> None:
    store = make(tmp_path / "cache")
    arrays = values(1)
    arrays["attention"][4, 2, 3, 1] = bad
    with pytest.raises(CacheError, match=r"array attention, unit 1: slot 10 \(number 4 of the unit\) holds 1 values"):
        store.write_unit(1, arrays, {})
    assert store.committed_units() == []
    assert not list(root_of(store).glob("priors.zarr/*/c.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attention": np.zeros((5, 3, 4, 5), np.float16)},
            r"expected float16 \[6, .*\], got float16 \[5, 3, 4, 5\]",
        ),
        ({"attention": np.zeros((6, 3, 4, 5), np.float32)}, r"expected float16 .* got float32"),
        ({"other": np.zeros(2)}, "unknown: other"),
        ({"scale": None}, "missing: scale"),
    ],
)
def test_other_arrays_than_planned_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {name: array for name, array in (values(0) | change).items() if array is not None}
    with pytest.raises(CacheError, match=message):
        make(tmp_path / "cache").write_unit(0, arrays, {})


def test_a_committed_unit_is_never_touched_again(tmp_path: Path) -> None:
    store = made(tmp_path / "cache")
    before = tree(root_of(store))
    store.write_unit(1, values(1), record(1))
    for arrays, note in ((values(0), record(1)), (values(1), record(0))):
        with pytest.raises(CacheError, match="unit 1 is committed with other content"):
            store.write_unit(1, arrays, note)
        with pytest.raises(CacheError, match="unit 1 is committed with other content"):
            Store.open(root_of(store)).write_unit(1, arrays, note)
    assert tree(root_of(store)) == before
    with pytest.raises(CacheError, match="there is no unit 3"):
        store.write_unit(3, values(3), {})


def test_two_processes_writing_one_unit_leave_one_sound_unit(tmp_path: Path) -> None:
    store = make(tmp_path / "cache")
    children = []
    for mine in (0, 1):  # each with content of its own: exactly one may win
        if (child := os.fork()) == 0:
            try:
                store.write_unit(2, values(mine), record(2))
            except CacheError:
                os._exit(3)
            except BaseException:
                os._exit(4)
            os._exit(0)
        children.append(child)
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 3]
    reader = Store.open(root_of(store))
    assert texts(reader) == []
    found = reader.read("attention", 12, 18)
    assert any(np.array_equal(found, values(mine)["attention"]) for mine in (0, 1))


def test_a_disk_that_fills_up_mid_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "cache")
    store.write_unit(0, values(0), record(0))
    before = tree(root_of(store))
    syncs = iter(range(100))

    def full(handle: int) -> None:  # the second shard does not fit any more
        if next(syncs) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shard_files.os, "fsync", full)
        with pytest.raises(CacheError, match="disk full; 1 of 3 units committed, free space and run the same command"):
            store.write_unit(1, values(1), record(1))
    assert tree(root_of(store)) == before
    fill(store)
    store.finish([{"sample": 9, "reason": "no pixels"}])
    assert tree(root_of(store)) == tree(root_of(made(tmp_path / "whole")))


def test_a_real_disk_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        big = [ArraySpec(name="large", item_shape=(4096,), dtype="float32", slots_per_unit=16)]  # 256 KiB a unit
        store = make(disk / "cache", arrays=big)
        (disk / "other").write_bytes(bytes(600_000))  # somebody else's
        content = {"large": np.ones((16, 4096), np.float32)}
        store.write_unit(0, content, {})
        before = tree(root_of(store))
        with pytest.raises(CacheError, match="disk full; 1 of 3 units committed"):
            store.write_unit(1, content, {})
        assert tree(root_of(store)) == before
        with pytest.raises(CacheError, match="bytes are needed"):
            make(disk / "cache", arrays=big)
        (disk / "other").unlink()
        assert make(disk / "cache", arrays=big).missing_units() == [1, 2]
        store.write_unit(1, content, {})
        assert texts(store) == []
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_disk_that_gives_back_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "cache", files=FILES)
    honest = os.writev
    monkeypatch.setattr(os, "writev", lambda handle, buffers: honest(handle, [bytes(b)[:-1] + b"\0" for b in buffers]))
    with pytest.raises(CacheError, match="other bytes came back"):
        store.write_unit(0, values(0), record(0))
    assert store.committed_units() == []
