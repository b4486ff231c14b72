"""Files made by an enemy: a valid header, and inside what must not be followed, run, believed or written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache.container import content_digest, header_bytes
from cache.hdf5 import H5Cache
from cache.identity import seal
from cache.layout import Meta
from cache.store import Store
from cache.transfer import export, import_
from manifests.errors import CacheError
from tests.cache.caches import FILES, made, tree

SECRET = b"root:x:0:0" * 100
SHAPE, CHUNKS = (18, 3, 4, 5), (1, 3, 4, 5)


def edit(path: Path, change: Callable[[h5py.File], Any]) -> None:
    """Change the inside and give the file a header that is true of it."""
    with h5py.File(path, "r+", locking=False) as file:
        change(file)
    with path.open("r+b") as opened:
        opened.write(header_bytes(path.stat().st_size, content_digest(path)))


def instead(name: str, make: Callable[[h5py.File], Any]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        make(file)

    return change


def array(**options: Any) -> Callable[[h5py.File], Any]:
    settings: dict[str, Any] = {"shape": SHAPE, "dtype": "<f2", "chunks": CHUNKS, "fletcher32": True}
    return put(ATTENTION, **(settings | options))


def put(name: str, **options: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset(name, **options)


def linked(name: str, link: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.__setitem__(name, link)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="<f2")
    layout[...] = h5py.VirtualSource("secret.h5", "data", shape=SHAPE)
    file.create_virtual_dataset(ATTENTION, layout)


def elsewhere(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset(name, shape, dtype, external=[("secret", 0, h5py.h5f.UNLIMITED)])


ATTENTION, ROWS = "priors/arrays/attention", "priors/files/rows.parquet"
CACHE_JSON = "priors/files/cache.json"
DEEP = np.frombuffer(b"[" * 1_000_000, np.uint8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (instead(ATTENTION, linked(ATTENTION, h5py.ExternalLink("secret.h5", "data"))), "is a link to another place"),
        (instead(ATTENTION, linked(ATTENTION, h5py.SoftLink("/priors/arrays/scale"))), "is a link to another place"),
        (instead("priors", linked("priors", h5py.ExternalLink("secret.h5", "/"))), "is a link to another place"),
        (instead("priors/files", linked("priors/files", h5py.SoftLink("/priors"))), "is a link to another place"),
        (instead(ATTENTION, virtual), "lies in other files"),
        (instead(ATTENTION, elsewhere(ATTENTION, SHAPE, "<f2")), "lies in other files"),
        (instead(ROWS, elsewhere(ROWS, (8,), "u1")), "lies in other files"),
        (instead(ATTENTION, array(dtype=">f2")), "not laid out as"),
        (instead(ATTENTION, array(dtype="<f4")), "not laid out as"),
        (instead(ATTENTION, array(dtype=h5py.string_dtype(), fletcher32=False)), "not laid out as"),
        (instead(ATTENTION, array(shape=(17, 3, 4, 5))), "not laid out as"),
        (instead(ATTENTION, array(shape=(10**12, 3, 4, 5))), "not laid out as"),
        (instead(ATTENTION, array(chunks=SHAPE)), "not laid out as"),
        (instead(ATTENTION, array(compression="gzip")), "not laid out as"),
        (instead(ATTENTION, array(fletcher32=False)), "not laid out as"),
        (instead(ATTENTION, array(chunks=None, fletcher32=False)), "not laid out as"),
        (instead(ATTENTION, lambda file: file.create_group(ATTENTION)), "is not a dataset"),
        (lambda file: file.pop(ATTENTION), "attention is missing"),
        (lambda file: file.pop("priors"), "neither priors nor images"),
        (lambda file: file.pop(ROWS), "rows.parquet is missing"),
        (instead(ROWS, put(ROWS, data=np.frombuffer(b"others", "u1"))), "does not have the sha256"),
        (instead(ROWS, put(ROWS, shape=(10**12,), dtype="u1", chunks=(10**6,), compression="gzip")), "not a row"),
        (instead(ROWS, put(ROWS, shape=(10**12,), dtype="u1")), "it is damaged"),
        (instead(CACHE_JSON, put(CACHE_JSON, data=DEEP)), "nested too deeply"),
    ],
)  # fmt: skip
def test_refused_when_it_is_opened(tmp_path: Path, change: Callable[[h5py.File], Any], says: str) -> None:
    path = tmp_path / "priors.h5"
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other.create_dataset("data", SHAPE, "<f2", chunks=CHUNKS, fletcher32=True)
    export(made(tmp_path / "cache"), None, path)
    edit(path, change)
    with pytest.raises(CacheError, match=says) as caught:
        H5Cache.open(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_wrong_values_with_sound_checksums_are_not_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "priors.h5"
    export(made(tmp_path / "cache"), None, path)

    def change(file: h5py.File) -> None:
        file[ATTENTION][7] = 1

    edit(path, change)
    assert [each for each in H5Cache.open(path).verify() if "attention, unit 1 is not what was committed" in each]
    with pytest.raises(CacheError, match="attention, unit 1 is not what was committed"):
        import_(path, tmp_path / "back")
    assert Store.open(tmp_path / "back").committed_units() == [0]


@pytest.mark.parametrize("name", ["../evil.parquet", "/evil", "cache.lock", "commits/000002.json", "a/b.parquet"])
def test_an_import_writes_only_its_own_files(tmp_path: Path, name: str) -> None:
    """cache.json may name any metadata file; nothing is written but the tables beside it."""
    store, path = made(tmp_path / "deep" / "cache"), tmp_path / "priors.h5"
    export(store, None, path)
    files = store.meta.files | {name: hashlib.sha256(b"evil").hexdigest()}

    def change(file: h5py.File) -> None:
        stored = file["priors/files"]
        del stored["cache.json"]
        stored["cache.json"] = np.frombuffer(replace(store.meta, files=files).to_bytes(), np.uint8)
        if name not in stored:
            stored[name.lstrip("/")] = np.frombuffer(b"evil", np.uint8)

    edit(path, change)
    with pytest.raises(CacheError):
        import_(path, tmp_path / "into" / "back")
    found = tree(tmp_path / "into")
    assert not any(data and b"evil" in data and not each.endswith("cache.json") for each, data in found.items())
    assert {each.split("/")[0] for each in found} <= {"back"} and not (tmp_path / "evil").exists()


def test_a_kind_that_is_a_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "priors.h5"
    export(made(tmp_path / "cache"), None, path)

    def change(file: h5py.File) -> None:
        record = json.loads(file["priors/files/cache.json"][:].tobytes()) | {"kind": "../../priors"}
        del file["priors/files/cache.json"]
        file["priors/files/cache.json"] = np.frombuffer(seal(record), np.uint8)

    edit(path, change)
    with pytest.raises(CacheError, match=r"is of a complete cache of \.\./\.\./priors"):
        import_(path, tmp_path / "back")


def test_a_stale_commit_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "priors.h5"
    store = made(tmp_path / "cache")
    export(store, None, path)
    shutil.copy(path, tmp_path / "sound.h5")
    lengths = [len(store.place.read(store.commits.name(unit))) for unit in range(3)]
    for ends in ([lengths[0]] * 3, [10**15, 5, 7], [*np.cumsum(lengths), 0]):

        def change(file: h5py.File, ends: Any = ends) -> None:
            del file["priors/commit_ends"]
            file["priors/commit_ends"] = np.frombuffer(np.array(ends, "<u8").tobytes(), np.uint8)

        edit(path, change)
        assert [each for each in H5Cache.open(path).verify() if "the commit record of unit" in each]
        shutil.copy(tmp_path / "sound.h5", path)
    assert FILES and Meta.from_bytes(store.meta.to_bytes()) == H5Cache.open(path).meta
