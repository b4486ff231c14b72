"""The same contract for a folder and for a bucket: whole objects, put-if-absent, one writer, stale locks."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from obstore.store import S3Store
from zarr.storage import ObjectStore

from cache import shard_files, shards
from cache.places import Bucket, Folder, Place, place_of
from cache.places import lease as leases
from cache.places.base import LOCK
from cache.places.lease import Lease
from cache.shards import ShardFormatError
from cache.store import Store
from cache.verify import repair, verify
from manifests.errors import CacheError, IdentityMismatch
from tests import s3
from tests.cache.caches import ARRAYS, UNITS, fill, made, make, record, values

HOLD = """
import sys, time
from cache.places import place_of
with place_of(sys.argv[1]).sole_writer():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3.server() as url:
        yield url


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        found = place_of(tmp_path / "cache")
    else:
        monkeypatch.setattr(leases, "BEAT", 0.2)
        monkeypatch.setattr(leases, "STALE", 2.0)
        found = place_of(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/cache")
    found.prepare(["tmp", "commits"])
    return found


def test_objects_are_put_read_listed_and_removed(place: Place) -> None:
    place.write("a.json", b"first")
    place.write("a.json", b"second")
    place.write("commits/1", b"", absent=True)
    with pytest.raises(FileExistsError):
        place.write("commits/1", b"other", absent=True)
    assert (place.read("a.json"), place.size("a.json"), place.size("b")) == (b"second", 6, None)
    assert place.digest("a.json") == "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    assert place.sizes("commits") == {"commits/1": 0} and place.sizes("nowhere") == {}
    assert [name for name in place.entries() if name not in ("tmp/", LOCK)] == ["a.json", "commits/"]
    place.remove("a.json")
    place.remove("a.json")
    place.remove_below("commits")
    place.remove_below("commits")
    assert [name for name in place.entries() if name not in ("tmp/", LOCK)] == []
    for missing in (place.read, place.digest):
        with pytest.raises(FileNotFoundError):
            missing("a.json")
    place.write_beside(".extract.json", b"{}")
    assert place.read_beside(".extract.json") == b"{}" and place.size(".extract.json") is None


def test_places_name_each_other(place: Place) -> None:
    assert place.at("images") == place_of(f"{place}/images") and place.relative(place.at("images")) == "images"
    other = place.at("../other/images")
    assert place.at(place.relative(other)) == other and other == place_of(f"{place}".replace("/cache", "/other/images"))
    for elsewhere in (place_of("/data/images"), place_of("s3://elsewhere/images")):
        assert place.at(place.relative(elsewhere)) == elsewhere
    for wrong in ("gs://bucket/x", "s3://", "s3://bucket"):
        with pytest.raises(CacheError, match=r"give (one of these|s3://)"):
            place_of(wrong)


def test_a_second_writer_is_told_who_and_since_when(place: Place) -> None:
    with place.sole_writer():
        holder = json.loads(place.read(LOCK))
        assert (holder["pid"], holder["host"]) == (os.getpid(), os.uname().nodename)
        refusal = rf"is being written by process {os.getpid()} of .* on {holder['host']}, since {holder['since'][:13]}"
        with pytest.raises(CacheError, match=refusal), place.sole_writer():
            pytest.fail("two writers")
        assert json.loads(place.read(LOCK))["run"] == holder["run"]
    assert place.read(LOCK) == b""
    with place.sole_writer():
        pass


def test_of_two_that_begin_together_one_is_refused(place: Place) -> None:
    outcomes, begin = [], threading.Barrier(2)

    def write() -> None:
        begin.wait()
        try:
            with place_of(place.name).sole_writer():
                time.sleep(1.5)
                outcomes.append("wrote")
        except CacheError:
            outcomes.append("refused")

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "wrote"]


def test_the_lock_of_a_killed_writer_is_taken_over_and_said(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, place.name], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with monkeypatch.context() as patch:
        patch.setattr(leases, "STALE", 10.0)  # the other process beats as often as it does by default
        with pytest.raises(CacheError, match=f"process {process.pid} of"), place.sole_writer():
            pytest.fail("two writers")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with caplog.at_level(logging.WARNING), place.sole_writer():
        pass
    assert f"its last writer ended without giving back the lock: process {process.pid} of" in caplog.text


def test_a_run_that_lost_its_lease_can_write_nothing_any_more(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Bucket(f"{bucket}/{tmp_path.name}")
    monkeypatch.setattr(leases, "BEAT", 600)  # as if its machine were asleep
    with place.sole_writer():
        store = make(place)
        store.write_unit(0, values(0), record(0))
        orphan = pickle.loads(pickle.dumps(store))  # in a worker that has not written yet
        monkeypatch.setattr(leases, "BEAT", 0.1)
        monkeypatch.setattr(leases, "STALE", 0.5)
        other = Bucket(place.name)
        with other.sole_writer():
            for write in (lambda: orphan.write_unit(1, values(1), record(1)), orphan.finish, orphan.reopen):
                with pytest.raises(CacheError, match="its lock is of another run by now"):
                    write()
            fill(make(other))
    assert place.read(LOCK) == b"" and verify(Store.open(place.name)) == []


def test_a_late_put_does_not_replace_a_committed_shard(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = make(f"{bucket}/{tmp_path.name}"), make(f"{bucket}/{tmp_path.name}")
    honest = Bucket.require_run
    calls = itertools.count()

    def slow(place: Bucket) -> None:
        if next(calls) == 0:  # between its look at what is there and its puts another one writes and commits the unit
            other.write_unit(0, values(1), record(0))
        honest(place)

    monkeypatch.setattr(Bucket, "require_run", slow)
    with pytest.raises(CacheError, match="can not be written"):
        late.write_unit(0, values(0), record(0))
    np.testing.assert_array_equal(Store.open(late.name).read("attention", 0, 6), values(1)["attention"])


def test_a_server_without_conditional_puts_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_put", lambda *_: True)  # as such a server answers
    with pytest.raises(CacheError, match="has no conditional puts"), Bucket(f"{bucket}/{tmp_path.name}").sole_writer():
        pytest.fail("two runs could write")


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41"])
def test_a_prefix_is_taken_as_it_is(bucket: str, tmp_path: Path, name: str) -> None:
    place = Bucket(f"{bucket}/{tmp_path.name}/{name}")
    place.write("x", b"y")
    assert place.read("x") == b"y" and Bucket(f"{bucket}/{tmp_path.name}").sizes("") == {f"{name}/x": 1}


def test_a_cache_in_a_bucket_has_the_bytes_of_one_in_a_folder(place: Place, tmp_path: Path) -> None:
    made(tmp_path / "reference")
    reference = place_of(tmp_path / "reference")
    with place.sole_writer():
        store = make(place)
        store.write_unit(1, values(1), record(1))
        assert make(place).missing_units() == [0, 2]
        fill(store)
        store.finish([{"sample": 9, "reason": "no pixels"}])
    assert verify(Store.open(place)) == []
    ours = {"units.lock", *reference.sizes("tmp")}
    names = {name for name in reference.sizes("") if name not in ours}
    assert {name for name in place.sizes("") if name not in ours} == names
    assert all(place.read(name) == reference.read(name) for name in names)
    with pytest.raises(IdentityMismatch, match="merge"):
        make(place, identity={"lmm": {"weights": "aa11", "revision": "main"}, "merge": "max", "layers": [0, 1, 2]})
    make(place, identity={"lmm": "other"}, overwrite=True)
    assert Store.open(place).missing_units() == [0, 1, 2] and place.sizes("priors.zarr/attention").keys() == {
        "priors.zarr/attention/zarr.json"
    }


def test_damage_is_found_read_and_verified(place: Place) -> None:
    made(place)
    name = "priors.zarr/attention/c.1.0.0.0"
    sound = place.read(name)
    for data in (sound[:100] + bytes([sound[100] ^ 1]) + sound[101:], sound[:-1], b""):
        place.write(name, data)
        store = Store.open(place)
        with pytest.raises(CacheError, match="unit 1 is damaged"):
            store.read("attention", 6, 12)
        assert [problem.unit for problem in verify(store)] == [1]
    place.remove(name)
    with pytest.raises(CacheError, match="unit 1 is damaged"):
        store.read("attention", 6, 12)
    repair(store, verify(store))
    assert make(place).missing_units() == [1]


def test_a_place_that_gives_back_other_bytes(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(f"{bucket}/{tmp_path.name}")
    sent_and_found = itertools.count()
    monkeypatch.setattr(shards, "digest", lambda _: str(next(sent_and_found)))
    with pytest.raises(CacheError, match="S3 gave back other bytes than were sent"):
        store.write_unit(0, values(0), record(0))
    assert store.committed_units() == []


@pytest.mark.parametrize("spec", ARRAYS, ids=lambda spec: spec.name)
def test_zarrs_object_store_reads_it(bucket: str, tmp_path: Path, spec: object) -> None:
    url = f"{bucket}/{tmp_path.name}"
    made(url)
    store = ObjectStore(
        S3Store.from_url(f"{url}/priors.zarr/{spec.name}", client_options={"allow_http": True}), read_only=True
    )
    expected = np.concatenate([values(unit)[spec.name] for unit in range(UNITS)])
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], expected, strict=True)


def test_an_unreachable_bucket_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    place = Bucket("s3://bucket/cache")
    place.__dict__["store"] = S3Store("bucket", prefix="cache", retry_config={"max_retries": 0})
    with pytest.raises(OSError, match="s3://bucket/cache") as caught:
        place.read("cache.json")
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path)
    place.prepare(["tmp"])
    place.write("a", b"old")

    def fail(_: int) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no disk"):
        place.write("a", b"new")
    assert place.read("a") == b"old" and place.sizes("tmp") == {}


def test_units_exclude_other_processes_until_they_die(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    place.prepare(["tmp"])
    (tmp_path / "tmp" / "half").touch()
    ready, go = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        with place.unit(7):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)  # without giving back
    os.read(ready[0], 1)
    with place.unit(8):
        pass
    place.clean()  # not while somebody writes
    assert place.sizes("tmp") == {"tmp/half": 0}
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    with place.unit(7):
        pass
    place.clean()
    assert place.sizes("tmp") == {}
    for handle in (*ready, *go):
        os.close(handle)


def test_a_shard_of_another_size_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "c.0").write_bytes(b"x")
    with pytest.raises(ShardFormatError, match="has 1 bytes"), shard_files.ShardFile(ARRAYS[0], tmp_path / "c.0"):
        pass
