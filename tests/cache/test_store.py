from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache import shard_files
from cache.create import bytes_to_write, require_space
from cache.layout import ArraySpec
from cache.places import place_of
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from tests.cache.caches import (
    ARRAYS,
    FILES,
    IDENTITY,
    SOFT,
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


def test_another_identity_is_refused_with_every_field_and_both_values(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    before = tree(tmp_path / "cache")
    identity = IDENTITY | {"lmm": {"weights": "bb22", "revision": "main"}, "layers": [0, 1, 5], "grid": 64}
    with pytest.raises(IdentityMismatch) as caught:
        make(tmp_path / "cache", identity=identity, units=4)
    message = str(caught.value)
    fields = ['lmm.weights: cache has "aa11", this run "bb22"', "layers[2]: cache has 2, this run 5"]
    fields += ["grid: cache has nothing, this run 64", "cache.units: cache has 3, this run 4"]
    for part in [*fields, "another --cache", "--overwrite"]:
        assert part in message
    assert "revision" not in message and "merge" not in message
    with pytest.raises(IdentityMismatch, match=r"cache\.arrays\.scale\.slots_per_chunk: cache has 4, this run 8"):
        make(tmp_path / "cache", arrays=[ARRAYS[0], _scale(8)])
    assert tree(tmp_path / "cache") == before


def _scale(chunk: int) -> ArraySpec:
    return ArraySpec(name="scale", item_shape=(), dtype="float32", slots_per_unit=8, slots_per_chunk=chunk)


def test_another_plan_is_refused_but_not_another_writer_of_the_same_plan(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.parquet" for name in "abc")
    pq.write_table(pa.table({"slot": [0, 4]}), one)
    pq.write_table(pa.table({"slot": [0, 4]}), two, compression="none")
    pq.write_table(pa.table({"slot": [0, 5]}), three)
    make(tmp_path / "cache", files={"rows.parquet": one.read_bytes()})
    make(tmp_path / "cache", files={"rows.parquet": two.read_bytes()})
    with pytest.raises(IdentityMismatch, match=r"files\.rows\.parquet\.slot\[1\]: cache has 4, this run 5"):
        make(tmp_path / "cache", files={"rows.parquet": three.read_bytes()})
    with pytest.raises(IdentityMismatch, match=r"files\.manifest\.parquet: cache has nothing"):
        make(tmp_path / "cache", files={"rows.parquet": one.read_bytes(), "manifest.parquet": b""})


def test_other_paths_and_versions_only_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path / "cache")
    before = tree(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        make(tmp_path / "cache", soft=SOFT | {"versions": {"zarr": "3.2"}})
    assert 'versions.zarr: cache has "3.1.6", this run "3.2"' in caplog.text
    assert tree(tmp_path / "cache") == before


def test_overwrite_deletes_another_cache_but_continues_the_same(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    made(root)
    make(root / "images", kind="images")  # a cache of its own inside
    (root / "notes.txt").write_text("mine")
    before = tree(root)
    assert make(root, overwrite=True).missing_units() == []
    assert tree(root) == before
    store = make(root, identity={"lmm": "other"}, overwrite=True)
    assert store.missing_units() == [0, 1, 2] and not store.complete
    assert not list(root.glob("priors.zarr/*/c.*")) and not (root / "failures.jsonl").exists()
    assert (root / "notes.txt").read_text() == "mine"
    assert Store.open(root / "images").meta.kind == "images"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["photo.jpg", "commits/000000.json", "cache.json"])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / "cache" / name).parent.mkdir(parents=True)
    (tmp_path / "cache" / name).write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(CacheError):
        make(tmp_path / "cache", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_committed_units_without_cache_json_are_not_thrown_away(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").unlink()
    (tmp_path / "cache" / "failures.jsonl").unlink()
    before = tree(tmp_path)
    with pytest.raises(CacheError, match=r"committed units but no cache\.json"):
        make(tmp_path / "cache", overwrite=True)
    assert tree(tmp_path) == before


def test_a_half_made_cache_of_another_layout_leaves_nothing_behind(tmp_path: Path) -> None:
    make(
        tmp_path / "cache",
        arrays=[ARRAYS[0], ArraySpec(name="other", item_shape=(2,), dtype="int32", slots_per_unit=2)],
    )
    (tmp_path / "cache" / "cache.json").unlink()  # the last file of a creation: as if it had been killed before
    (tmp_path / "cache" / "tmp" / "0123abcd").write_bytes(b"half a file")
    assert tree(root_of(make(tmp_path / "cache"))) == tree(root_of(make(tmp_path / "clean")))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="is a file"):
        make(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"are needed|can not be written"):
        make(Path("/proc/cache"))
    with pytest.raises(CacheError, match="holds no cache"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="nothing to extract"):
        make(tmp_path / "other", units=0)


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9999, 9000, 999))
    with pytest.raises(CacheError, match=r"[0-9],[0-9]{3} bytes are needed and 999 are free"):
        make(tmp_path / "cache")
    assert tree(tmp_path) == {}


def test_caches_on_one_disk_need_room_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9999, 9000, 999))
    one, two = place_of(tmp_path / "a" / "images"), place_of(tmp_path / "a")
    require_space({one: 600, two: 399})
    with pytest.raises(CacheError, match=r"a/images and .*/a: 1,000 bytes are needed and 999 are free"):
        require_space({one: 600, two: 400})


def test_what_is_there_already_needs_no_more_room(tmp_path: Path) -> None:
    whole = bytes_to_write(place_of(tmp_path / "cache"), ARRAYS, UNITS)
    store = make(tmp_path / "cache")
    assert bytes_to_write(store.place, ARRAYS, UNITS) == whole > 0
    store.write_unit(1, values(1), record(1))
    assert bytes_to_write(store.place, ARRAYS, UNITS) == whole * 2 // 3
    fill(store)
    assert bytes_to_write(store.place, ARRAYS, UNITS) == 0


def test_a_cache_that_another_option_chose_is_named_by_it(tmp_path: Path) -> None:
    made(tmp_path / "cache")
    with pytest.raises(IdentityMismatch, match=r"Choose another --images$"):
        make(tmp_path / "cache", units=4, option="--images")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(CacheError, match="choose another --images or empty it yourself"):
        make(tmp_path / "thesis", option="--images")


def test_half_made_caches_inside_are_no_strangers(tmp_path: Path) -> None:
    for name in ("empty", "begun/tmp"):  # what kills leave of an image cache in the folder of its priors
        (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "cache" / "begun" / "cache.lock").touch()
    assert make(tmp_path / "cache").missing_units() == [0, 1, 2]


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
