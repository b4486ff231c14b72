"""The HDF5 file: read like the folder it came from, and back to that folder byte for byte."""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache.hdf5 import H5Cache
from cache.layout import ArraySpec
from cache.priors import Priors
from cache.store import Store
from cache.transfer import export, import_
from manifests.errors import CacheError, IdentityMismatch
from tests.cache.caches import ARRAYS, FILES, UNITS, made, make, record, root_of, shard, tree, values
from tests.cache.test_damage import flip
from tests.cache.test_kill import dies_at
from tests.cache.test_priors import make_images, make_priors

WHOLE = {spec.name: np.concatenate([values(unit)[spec.name] for unit in range(UNITS)]) for spec in ARRAYS}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache and its file; not to be changed."""
    root = tmp_path_factory.mktemp("sound")
    export(made(root / "cache"), None, root / "priors.h5")
    return root


@pytest.fixture
def file(sound: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copy(sound / "priors.h5", tmp_path / "priors.h5")


def test_it_reads_as_the_folder_does(sound: Path) -> None:
    store, cache = Store.open(sound / "cache"), pickle.loads(pickle.dumps(H5Cache.open(sound / "priors.h5")))
    for name, start, stop in [("attention", 0, 18), ("attention", 5, 7), ("attention", 4, 13), ("scale", 7, 9)]:
        found, out = cache.read(name, start, stop), np.empty_like(WHOLE[name][start:stop])
        assert (
            cache.read(name, start, stop, out) is out and store.read(name, start, stop, out.copy()).dtype == out.dtype
        )
        for each in (found, out, store.read(name, start, stop)):
            np.testing.assert_array_equal(each, WHOLE[name][start:stop], strict=True)
    assert cache.read("attention", 4, 4).shape == (0, 3, 4, 5)
    for wrong in [("attention", -1, 2), ("attention", 3, 2), ("attention", 0, 19), ("other", 0, 1)]:
        with pytest.raises(CacheError, match="has no"):
            cache.read(*wrong)
    with pytest.raises(ValueError, match="needs another one"):
        cache.read("scale", 0, 2, np.empty(2, np.float64))
    for name in store.meta.files:
        assert bytes(cache.file(name)) == store.place.read(name)
    with pytest.raises(CacheError, match="no metadata file 'other'"):
        cache.file("other")
    assert cache.meta == store.meta and cache.complete and cache.failures() == store.failures()
    assert (cache.committed_units(), cache.missing_units()) == ([0, 1, 2], [])
    assert [cache.commit(unit)[0] for unit in range(UNITS)] == [
        store.place.read(store.commits.name(unit)) for unit in range(UNITS)
    ]
    assert cache.verify() == []


def test_any_program_with_h5py_reads_it(sound: Path) -> None:
    with h5py.File(sound / "priors.h5", "r", locking=False) as file:
        attention = file["priors/arrays/attention"]
        np.testing.assert_array_equal(attention[...], WHOLE["attention"], strict=True)
        assert attention.chunks == (1, 3, 4, 5) and attention.fletcher32 and attention.compression is None
        assert file["priors/arrays/scale"].chunks == (4,)
        assert b"mean 1" in attention.attrs["axes"] and b"rows.parquet" in file.attrs["about"]
        assert file["priors/files/rows.parquet"][:].tobytes() == FILES["rows.parquet"]


def test_back_into_a_folder_byte_for_byte(sound: Path, tmp_path: Path) -> None:
    import_(sound / "priors.h5", tmp_path / "cache")
    assert tree(tmp_path / "cache") == tree(sound / "cache")
    export(Store.open(tmp_path / "cache"), None, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (sound / "priors.h5").read_bytes()


def test_an_import_goes_on_where_it_was_killed(sound: Path, tmp_path: Path) -> None:
    expected, step = tree(sound / "cache"), 0
    while dies_at(step, partial(import_, sound / "priors.h5", tmp_path / "killed")):  # ever later, in one folder
        step += 7
    import_(sound / "priors.h5", tmp_path / "killed")
    assert tree(tmp_path / "killed") == expected and step > 30


def test_an_import_into_another_cache_changes_nothing(sound: Path, tmp_path: Path) -> None:
    make(tmp_path / "identity", identity={"lmm": "other"})
    other = make(tmp_path / "content")
    other.write_unit(1, values(2), record(1))
    make(tmp_path / "soft", soft={"data": "/elsewhere"})
    for name, says in (("identity", "made with other settings"), ("content", "unit 1 is committed with other content")):
        with pytest.raises(CacheError, match=says):
            import_(sound / "priors.h5", tmp_path / name)
    with pytest.raises(CacheError, match=r"begun by another run.*cache\.json differ; import into another folder"):
        import_(sound / "priors.h5", tmp_path / "soft")
    assert other.committed_units() == [0, 1] and not Store.open(root_of(other)).complete


@pytest.mark.parametrize("with_images", [True, False])
def test_priors_from_a_file_equal_those_from_the_folder(tmp_path: Path, with_images: bool) -> None:
    images = make_images(tmp_path / "cache" / "images")
    make_priors(tmp_path / "cache", images)
    path = tmp_path / "far" / "priors.h5"
    export(Store.open(tmp_path / "cache"), images if with_images else None, path)
    export(images, None, tmp_path / "images.h5")
    folder = Priors.open(tmp_path / "cache")
    places = [None, tmp_path / "cache" / "images", tmp_path / "images.h5"] if with_images else [tmp_path / "images.h5"]
    if not with_images:
        with pytest.raises(
            CacheError,
            match=r"its image embeddings are not at .*far/images; say where their cache is with --images",
        ):
            Priors.open(path)
        shutil.copytree(root_of(images), path.parent / "images")  # beside the file, as `soft` of the cache names it
        places.append(None)
    for place in places:
        priors = pickle.loads(pickle.dumps(Priors.open(path, images_dir=place)))
        assert (priors.failures, priors.identity, list(priors.samples)) == (
            folder.failures,
            folder.identity,
            list(folder.samples),
        )
        for index in range(len(folder)):
            found, expected = priors.read(index), folder.read(index)
            assert (found is None) == (expected is None) == (index in folder.failures)
            if found is not None and expected is not None:
                for field in fields(found):
                    np.testing.assert_array_equal(
                        getattr(found, field.name), getattr(expected, field.name), strict=True
                    )
                np.testing.assert_array_equal(priors.embedding(index), folder.embedding(index), strict=True)
    kinds = ["priors", "images"] if with_images else ["priors"]
    assert H5Cache.kinds(path) == kinds and H5Cache.open(path).meta.kind == "priors"
    assert H5Cache.open(tmp_path / "images.h5").reference() == images.reference()
    with pytest.raises(CacheError, match="holds no cache of priors"):
        Priors.open(tmp_path / "images.h5")
    with pytest.raises(
        IdentityMismatch, match=r"images\.identity\.sam\.weights: cache has \"sam-1\", this run \"sam-2\""
    ):
        export(Store.open(tmp_path / "cache"), make_images(tmp_path / "other", weights="sam-2"), tmp_path / "no.h5")
    if with_images:
        import_(path, tmp_path / "back")
        assert tree(tmp_path / "back") == tree(tmp_path / "cache")
        assert Priors.open(tmp_path / "back").read(0) is not None


def test_only_whole_sound_caches_are_exported(tmp_path: Path) -> None:
    store = make(tmp_path / "half")
    store.write_unit(0, values(0), record(0))
    with pytest.raises(CacheError, match=r"not complete \(2 of 3 units are missing\)"):
        export(store, None, tmp_path / "half.h5")
    for name, says in (
        ("attention", "array attention, unit 1 is damaged"),
        ("stale", "unit 1 is damaged .* is of another run"),
    ):
        store = made(tmp_path / name)
        if name == "attention":
            flip(shard(root_of(store), 1), 5 * 124 + 7)
        else:  # a shard of the right shape, with sound checksums, from another run
            shutil.copy(shard(root_of(store), 0), shard(root_of(store), 1))
        with pytest.raises(CacheError, match=says):
            export(Store.open(root_of(store)), None, tmp_path / f"{name}.h5")
    assert not list(tmp_path.glob("*.h5")) and not list(tmp_path.glob(".*"))


def test_a_file_that_is_there_is_kept_unless_asked(sound: Path, tmp_path: Path) -> None:
    store, path = Store.open(sound / "cache"), tmp_path / "priors.h5"
    path.write_text("mine")
    with pytest.raises(CacheError, match="exists already; choose another --to, or pass --overwrite"):
        export(store, None, path)
    assert path.read_text() == "mine"
    export(store, None, path, overwrite=True)
    assert path.read_bytes() == (sound / "priors.h5").read_bytes()
    with pytest.raises(CacheError, match="is a folder"):
        export(store, None, tmp_path, overwrite=True)
    with pytest.raises(CacheError, match=r"can not be written|bytes are needed"):
        export(store, None, Path("/proc/nowhere/priors.h5"))


def test_a_disk_that_fills_up(sound: Path, tmp_path: Path) -> None:
    """Real errors of writing: in a process that may not make files as large as this one."""
    whole, said = (sound / "priors.h5").stat().st_size, tmp_path / "said"
    for limit in (100, whole // 2, whole - 1):
        if (child := os.fork()) == 0:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                export(Store.open(sound / "cache"), None, tmp_path / "out" / "priors.h5")
            except CacheError as error:
                said.write_text(str(error)[:99])
                os._exit(3)
            except BaseException:
                os._exit(4)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert "priors.h5 can not be written" in said.read_text()
        assert list((tmp_path / "out").iterdir()) == []


def test_two_exports_to_one_file(sound: Path, tmp_path: Path) -> None:
    store, path, seen = Store.open(sound / "cache"), tmp_path / "priors.h5", []

    def second(*_: object) -> None:
        with pytest.raises(CacheError, match="is being written by another export"):
            export(store, None, path)
        seen.append(1)

    export(store, None, path, progress=second)
    assert seen and H5Cache.open(path).verify() == []


def test_a_kill_leaves_no_file_or_a_whole_one(sound: Path, tmp_path: Path) -> None:
    expected, store, rng, kills = (sound / "priors.h5").read_bytes(), Store.open(sound / "cache"), random.Random(0), 0
    work = partial(export, store, None)
    for step in range(60):
        path = tmp_path / f"step{step}.h5"
        if not dies_at(step, partial(work, path)):
            break
        kills += 1
        assert not path.exists() or path.read_bytes() == expected
        export(store, None, path, overwrite=True)  # what the kill left is no obstacle
        assert path.read_bytes() == expected
    path = tmp_path / "moment.h5"
    start = time.perf_counter()
    export(store, None, path)
    took = time.perf_counter() - start
    for _ in range(20):
        path.unlink(missing_ok=True)
        if (child := os.fork()) == 0:
            work(path)
            os._exit(0)
        time.sleep(rng.uniform(0, 1.1 * took))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not path.exists() or path.read_bytes() == expected
    assert kills > 20


def test_every_flipped_bit_is_noticed(sound: Path, file: Path) -> None:
    """By reading where it is payload, by opening or `verify` everywhere; what is read is right or refused."""
    data, rng, refused, unread = file.read_bytes(), random.Random(0), 0, 0
    for position in sorted(rng.sample(range(len(data)), 240)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        file.unlink()  # HDF5 would serve a file that it has open, the one of the round before, from its memory
        file.write_bytes(flipped)
        try:
            cache = H5Cache.open(file)
            assert cache.verify(), f"byte {position}"
        except CacheError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for name, whole in WHOLE.items():
            try:
                np.testing.assert_array_equal(cache.read(name, 0, len(whole)), whole, strict=True)
            except CacheError as error:
                assert "\n" not in str(error)
                unread += 1
    assert 20 < refused < 240 and unread > 20


def test_a_flipped_bit_of_a_chunk_is_noticed_by_reading_it(sound: Path, file: Path) -> None:
    with h5py.File(sound / "priors.h5", "r", locking=False) as opened:
        infos = {name: [opened[f"priors/arrays/{name}"].id.get_chunk_info(i) for i in range(3)] for name in WHOLE}
    data, rng = file.read_bytes(), random.Random(1)
    for name, chunks in infos.items():
        for info in chunks:
            unit = info.chunk_offset[0] // 8 if name == "scale" else 0
            chunk = H5Cache.open(sound / "priors.h5").read(name, info.chunk_offset[0], info.chunk_offset[0] + 1)
            at = data.index(chunk.tobytes(), info.byte_offset)  # the chunk really lies there
            for position in rng.sample(range(at, at + info.size), 6):
                flip(file, position)
                with pytest.raises(
                    CacheError, match=rf"priors\.h5: array {name}, unit {unit} is damaged .*; copy the file"
                ):
                    H5Cache.open(file).read(name, info.chunk_offset[0], info.chunk_offset[0] + 1)
                problems = H5Cache.open(file).verify()
                assert len(problems) == 2 and "sha256" in problems[0] and f"{name}, unit {unit}" in problems[1]
                with pytest.raises(CacheError, match=f"unit {unit} is damaged"):
                    import_(file, file.parent / "cache")
                file.write_bytes(data)
    assert Store.open(file.parent / "cache").committed_units() == [0]  # whole before unit 1 was found to be damaged


def test_files_that_are_none(sound: Path, tmp_path: Path) -> None:
    whole, path = (sound / "priors.h5").read_bytes(), tmp_path / "x.h5"
    with pytest.raises(CacheError, match=r"x\.h5 can not be read: No such file"):
        Priors.open(path)
    with h5py.File(path, "w") as file:
        file["priors"] = 1
    with pytest.raises(CacheError, match="none that `cache export` wrote"):
        Priors.open(path)
    for data in (b"", b"PK\3\4", whole[:300], b"[" * 512, b"\0" * 512 + whole[512:]):
        path.write_bytes(data)
        with pytest.raises(CacheError, match="no cache that `cache export` wrote, or damaged"):
            Priors.open(path)
    for data in (whole[:-1], whole[:600], whole + b"\0"):
        path.write_bytes(data)
        with pytest.raises(CacheError, match=r"bytes long, [0-9,]+ were written; copy the file again"):
            Priors.open(path)


def test_forks_and_threads_share_a_reader(sound: Path) -> None:
    cache, wrong = H5Cache.open(sound / "priors.h5"), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            slot = rng.randrange(17)
            if not np.array_equal(cache.read("attention", slot, slot + 2), WHOLE["attention"][slot : slot + 2]):
                wrong.append(slot)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if (child := os.fork()) == 0:
        work(9)
        os._exit(len(wrong))
    assert os.waitpid(child, 0)[1] == 0 and not wrong
    work(10)
    assert not wrong


def test_large_chunks(tmp_path: Path) -> None:
    """Objects of the size of LLaVA's, more than HDF5 keeps in its own memory by default."""
    spec = ArraySpec(name="attention", item_shape=(1024, 24, 24), dtype="float16", slots_per_unit=4)
    store = make(tmp_path / "cache", arrays=[spec], units=2)
    for unit in store.missing_units():
        content = np.random.default_rng(unit).normal(size=spec.unit_shape).astype("f2")
        store.write_unit(unit, {"attention": content}, {})
    store.finish()
    export(store, None, tmp_path / "priors.h5")
    cache = H5Cache.open(tmp_path / "priors.h5")
    for start, stop in ((0, 8), (3, 5), (7, 8)):
        np.testing.assert_array_equal(cache.read("attention", start, stop), store.read("attention", start, stop))
    assert cache.verify() == []
