"""A complete cache as one HDF5 file to carry to another cluster, and back into a folder, byte for byte.

export(Store.open("runs/cache"), Store.open("runs/cache/images"), Path("priors.h5"))
import_(Path("priors.h5"), Path("elsewhere/cache"))
"""

from __future__ import annotations

import fcntl
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from cache.container import HEADER, Progress, content_digest, header_bytes, quiet
from cache.create import META, require_ours, require_space
from cache.hdf5 import COMMIT_ENDS, H5Cache, as_committed
from cache.identity import canonical_json, differing
from cache.layout import zarr_metadata
from cache.log8 import ATTRIBUTES
from cache.places import Folder, Place, Where, place_of
from cache.shard_files import sync_folder
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch

# HDF5 1.10 has all that is needed (an index of fixed size, with checksums): any h5py since 2.9 opens such a file
_LIBVER: Final = ("v110", "v110")
META_FILES: Final = ("manifest.parquet", "rows.parquet")
_TABLE: Final = re.compile(r"[a-z_]+\.parquet")  # metadata files that an import may write: no path, no other name
_ANOTHER: Final = "import into another folder"
_MEANING: Final = {
    "attention": "slot (object), channel (layer * heads + head), row, column: attention, each map of mean 1",
    **{name: "; ".join(about.values()) for name, about in ATTRIBUTES.items()},
    "attention_mass": "slot (object), channel: attention * mass / (rows * columns) is what the LMM's softmax gave",
    "hidden": "slot (token of an object), layer, width: hidden states of RMS 1; times hidden_scale",
    "hidden_scale": "slot (token of an object), layer: what restores hidden",
    "answer_hidden": "slot (token of the answer), width: last hidden states of RMS 1; times answer_scale",
    "answer_scale": "slot (token of the answer): what restores answer_hidden",
    "embedding": "slot (image), channel, row, column: SAM's embedding of the image",
}
_ABOUT: Final = (
    "Attention priors of a frozen large multimodal model. arrays/: one dataset per field, files/rows.parquet: which "
    "slots belong to which sample, files/manifest.parquet: the samples, files/cache.json: how it all was made. "
    "Files are uint8 datasets: open('rows.parquet', 'wb').write(file['priors/files/rows.parquet'][:].tobytes())"
)


def export(
    store: Store, images: Store | None, path: Path, *, overwrite: bool = False, progress: Progress = quiet
) -> None:
    """Write `store` (priors, or an image cache alone) and, if given, its image cache into one file.

    Every unit is compared with its commit record on its way, and when all is written every chunk is read back and
    checked; then only does the file get its name. Raises CacheError, and leaves no file, for a cache that is not
    complete or is damaged, for a file that is there (unless overwrite) and for too little free disk; IdentityMismatch
    for images of other priors.
    """
    caches = [store] if images is None else [store, images]
    for each in caches:
        if not each.complete:
            raise CacheError(
                f"{each.name} is not complete ({len(each.missing_units())} of {each.meta.units} units are missing); "
                "run extract again to resume, then export"
            )
    if images is not None and (found := differing(store.meta.identity.get("images"), images.reference(), "images")):
        raise IdentityMismatch(
            f"{images.name} is not the image cache that {store.name} was made with: {'; '.join(map(str, found))}; "
            "give the right one with --images"
        )
    path = path.absolute()
    _require_free(path, overwrite)
    require_space({Folder(path): sum(each.meta.units * each.meta.unit_bytes for each in caches)}, "--to")
    with _disk_errors(path), _unfinished(path) as part:
        _write(part, caches, progress)
        digest = content_digest(part, progress, from_disk=True)
        with part.open("r+b") as file:
            file.write(header_bytes(part.stat().st_size, digest))
            os.fsync(file.fileno())
        for each in caches:
            _read_back(H5Cache(part, each.meta.kind), progress)
        _require_free(path, overwrite)
        part.replace(path)
        sync_folder(path.parent)


def import_(path: Path, where: Where, images: Where | None = None, *, progress: Progress = quiet) -> None:
    """Rebuild the caches of a file: the priors at `where`, images in the file at `images` (default: where/images).

    The folders are, byte for byte, those that were exported. A killed import goes on where it was when it is repeated.
    Raises CacheError for a damaged file and for folders that hold another cache, or none of ours.
    """
    kinds = H5Cache.kinds(path.absolute())
    root = place_of(where)
    beside = place_of(images) if images is not None else root.at("images")
    places = {"priors": root, "images": beside if "priors" in kinds else root}
    for kind in kinds:
        require_ours(places[kind], kind, META_FILES, "folder")
    for kind in reversed(kinds):  # images first, as extraction does: complete priors have their images
        with places[kind].sole_writer():
            _import_one(H5Cache.open(path, kind), places[kind], progress)


def _write(part: Path, caches: Sequence[Store], progress: Progress) -> None:
    with _Sink(part) as sink:
        with h5py.File(sink, "w", libver=_LIBVER, userblock_size=HEADER) as file:
            file.attrs["about"] = np.bytes_(_ABOUT)
            for each in caches:
                _write_cache(file.create_group(each.meta.kind), each, sink.checked(progress))
        sink.check()
        os.fsync(sink.fileno())


def _write_cache(group: h5py.Group, store: Store, progress: Progress) -> None:
    meta = store.meta
    files = {name: store.place.read(name) for name in sorted(meta.files)}  # one cache, one file, to the bit
    for name, data in (files | {META: meta.to_bytes()}).items():
        _write_bytes(group, f"files/{name}", data)
    records = [store.place.read(store.commits.name(unit)) for unit in store.planned_units if _commit(store, unit)]
    _write_bytes(group, "commits", b"".join(records))
    _write_bytes(group, "commit_ends", np.cumsum([len(each) for each in records]).astype(COMMIT_ENDS).tobytes())
    for name, spec in meta.arrays.items():
        dataset = group.create_dataset(
            f"arrays/{name}",
            shape=(meta.units * spec.slots_per_unit, *spec.item_shape),
            dtype=np.dtype(spec.dtype).newbyteorder("<"),
            chunks=(spec.slots_per_chunk, *spec.item_shape),
            fletcher32=True,
        )
        dataset.attrs["axes"] = np.bytes_(_MEANING.get(name, "slot, then the axes of an item"))
    for unit in store.planned_units:
        _write_unit(group, store, unit)
        progress(f"write {meta.kind}", (unit + 1) * meta.unit_bytes, meta.units * meta.unit_bytes)


def _write_unit(group: h5py.Group, store: Store, unit: int) -> None:
    commit = _commit(store, unit)
    for name, spec in store.meta.arrays.items():
        slots = slice(unit * spec.slots_per_unit, (unit + 1) * spec.slots_per_unit)
        values = store.read(name, slots.start, slots.stop)
        if not as_committed(spec, values, commit):
            raise CacheError(
                f"{store.name}: array {name}, unit {unit} is not what was committed; extract the unit again (cache "
                "verify says how), then export"
            )
        group[f"arrays/{name}"][slots] = values


def _read_back(written: H5Cache, progress: Progress) -> None:
    meta = written.meta
    buffers = {name: np.empty(spec.unit_shape, spec.dtype) for name, spec in meta.arrays.items()}
    for unit in range(meta.units):
        for name, spec in meta.arrays.items():
            written.read(name, unit * spec.slots_per_unit, (unit + 1) * spec.slots_per_unit, buffers[name])
        progress(f"read back {meta.kind}", (unit + 1) * meta.unit_bytes, meta.units * meta.unit_bytes)


def _commit(store: Store, unit: int) -> dict[str, Any]:
    if (commit := store.commits.get(unit)) is None:
        raise CacheError(f"{store.name} is complete but the commit record of unit {unit} is gone; extract it again")
    return commit


def _write_bytes(group: h5py.Group, name: str, data: bytes) -> None:
    group.create_dataset(name, data=np.frombuffer(data, np.uint8))


def _import_one(source: H5Cache, root: Place, progress: Progress) -> None:
    meta = source.meta
    for name, data in zarr_metadata(meta).items():
        if data != source.file(name).to_pybytes():
            raise CacheError(
                f"{source.name}: the zarr of this environment writes another {name} than zarr "
                f"{meta.soft.get('zarr', '(unknown)')} did; install that one, or read the file as it is: --cache FILE"
            )
    store = Store.create_or_resume(
        root, kind=meta.kind, identity=meta.identity, soft=meta.soft, arrays=list(meta.arrays.values()),
        units=meta.units, files={name: source.file(name).to_pybytes() for name in meta.files if _TABLE.fullmatch(name)},
        option="folder",
    )  # fmt: skip
    missing = set(store.missing_units())
    for unit in store.planned_units:
        if unit in missing:
            store.write_unit(unit, source.unit(unit), source.commit(unit)[1]["record"])
        if store.place.read(store.commits.name(unit)) != source.commit(unit)[0]:
            raise CacheError(f"{root}: unit {unit} is committed with other content than {source.name} has; {_ANOTHER}")
        progress(f"import {meta.kind}", (unit + 1) * meta.unit_bytes, meta.units * meta.unit_bytes)
    store.finish(_planned_failures(source))
    if store.meta != meta:
        raise CacheError(f"{root} was begun by another run than {source.name}: their {META} differ; {_ANOTHER}")


def _planned_failures(source: H5Cache) -> list[dict[str, Any]]:
    """What failed before any unit: all failures but those that the commit records tell."""
    told = (source.commit(unit)[1]["record"].get("failures", []) for unit in source.committed_units())
    counts = Counter(canonical_json(failure) for failures in told for failure in failures)
    planned = []
    for failure in source.failures():
        if counts[key := canonical_json(failure)]:
            counts[key] -= 1
        else:
            planned.append(failure)
    return planned


def _require_free(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise CacheError(f"{path} is a folder; give --to the name of a file, such as {path / 'priors.h5'}")
    if path.exists() and not overwrite:
        raise CacheError(f"{path} exists already; choose another --to, or pass --overwrite to replace it")


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, held against other exports to it; gone after an error, emptied after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.unfinished")
    with part.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists() or not os.path.samestat(part.stat(), os.fstat(held.fileno())):
                raise BlockingIOError  # the other one finished between our two calls
        except BlockingIOError:
            raise CacheError(
                f"{path} is being written by another export; wait for it, or choose another --to"
            ) from None
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)  # after success the name is gone already


class _Sink(io.FileIO):
    """What HDF5 writes to. It crashes where it can not write (1.14, 2.0), so it never learns of a full disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        """Raise what HDF5 was not told."""
        if self.error is not None:
            raise self.error

    def checked(self, progress: Progress) -> Progress:
        """`progress`, which also stops at the first error."""

        def told(step: str, done: int, total: int) -> None:
            self.check()
            progress(step, done, total)

        return told


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except (OSError, RuntimeError) as error:  # h5py raises either for a full disk
        reason = " ".join(str(error).split())
        raise CacheError(f"{path} can not be written ({reason}); free some space, or choose another --to") from error
