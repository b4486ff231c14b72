"""A cache made, recognised or refused: identity, foreign folders, room on the disk."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.create import bytes_to_write, require_space
from cache.layout import ArraySpec
from cache.places import place_of
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from tests.cache.caches import (
    ARRAYS,
    IDENTITY,
    SOFT,
    UNITS,
    fill,
    made,
    make,
    record,
    root_of,
    tree,
    values,
)


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
