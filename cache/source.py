"""What a reader needs of a cache, wherever it lies: a folder or bucket (`Store`), or one HDF5 file (`H5Cache`)."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np

from cache.container import is_file
from cache.create import META
from cache.hdf5 import H5Cache
from cache.layout import Kind, Meta
from cache.places import Place, Where
from cache.store import Store
from manifests.errors import CacheError


class Source(Protocol):
    """A cache that can be read."""

    meta: Meta

    @property
    def name(self) -> str:
        """The folder, file or URL, for messages."""
        ...

    @property
    def place(self) -> Place:
        """What paths in the cache's metadata are relative to."""
        ...

    @property
    def complete(self) -> bool: ...

    def read(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Slots [start, stop) of an array, checked: [stop - start, *item_shape]; in `out` if it is given.

        CacheError if any of them is not extracted yet or is damaged.
        """
        ...

    def advise(self, name: str, start: int, stop: int) -> None:
        """Slots [start, stop) of an array will be read soon: a disk may begin."""
        ...

    def file(self, name: str) -> Any:
        """A metadata file (manifest.parquet, rows.parquet, …) as pyarrow.parquet.ParquetFile takes it."""
        ...

    def failures(self) -> list[dict[str, Any]]: ...

    def committed_units(self) -> list[int]: ...

    def missing_units(self) -> list[int]: ...

    def stored_bytes(self) -> dict[str, int]: ...

    def reference(self) -> dict[str, Any]: ...


def open_source(where: Where, kind: Kind | None = None) -> Source:
    """The cache at a place, or in an HDF5 file that `cache export` wrote, of which `kind` says which cache.

    Raises CacheError if there is none, or its metadata is damaged.
    """
    if not isinstance(where, Place) and "://" not in os.fspath(where) and is_file(where):
        return H5Cache.open(where, kind)
    return Store.open(where)


def images_of(priors: Source, given: Where | None = None) -> Where:
    """Where the image cache is that `priors` names.

    `given`, if it is; else in the same file; else where extraction put it, seen from the cache; else, as after an
    import, at images/ in it. CacheError if there is none.
    """
    if given is not None:
        return given
    if isinstance(priors, H5Cache) and "images" in H5Cache.kinds(priors.path):
        return priors.path
    places = [priors.place.at(str(priors.meta.soft.get("images", "images"))), priors.place.at("images")]
    for place in places:
        if place.size(META) is not None:
            return place
    raise CacheError(
        f"{priors.name}: its image embeddings are not at {places[0]}; say where their cache is with --images "
        "(or export with --with-images)"
    )
