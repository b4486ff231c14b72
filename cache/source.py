"""What a reader needs of a cache, wherever it lies: a folder (`Store`) or one HDF5 file (`H5Cache`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cache.container import is_file
from cache.hdf5 import H5Cache
from cache.layout import Kind, Meta
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
    def complete(self) -> bool: ...

    def read(self, array: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Slots [start, stop) of an array, checked: [stop - start, *item_shape]; in `out` if it is given.

        CacheError if any of them is not extracted yet or is damaged.
        """
        ...

    def file(self, name: str) -> bytes | pa.Buffer:
        """A metadata file (manifest.parquet, rows.parquet, …), compared with its digest; CacheError if it differs."""
        ...

    def failures(self) -> list[dict[str, Any]]: ...

    def committed_units(self) -> list[int]: ...

    def missing_units(self) -> list[int]: ...

    def reference(self) -> dict[str, Any]: ...

    def verify(self) -> list[str]: ...


def open_source(path: str | os.PathLike[str], kind: Kind | None = None) -> Source:
    """The cache at a path: a folder, or an HDF5 file that `cache export` wrote, of which `kind` says which cache.

    Raises CacheError if there is none, or its metadata is damaged.
    """
    return H5Cache.open(path, kind) if is_file(path) else Store.open(path)


def images_place(priors: Source, path: Path, images_dir: str | os.PathLike[str] | None) -> Path:
    """Where the image cache is that `priors`, opened from `path`, names.

    images_dir, if given; else in the same file; else where extraction put it, seen from the cache; else, as after an
    import, at images/ in the cache. For an HDF5 file without images its folder stands for the cache's; CacheError if
    there are none.
    """
    if images_dir is not None:
        return Path(images_dir)
    folder = path
    if isinstance(priors, H5Cache):
        if "images" in H5Cache.kinds(path):
            return path
        folder = path.parent
    named = folder / str(priors.meta.soft.get("images", "images"))
    inside = folder / "images"
    if folder != path and not named.exists() and not inside.exists():
        raise CacheError(
            f"{path} has no image embeddings inside and there are none at {named}; name their cache with --images, or "
            "export --with-images"
        )
    return inside if inside.is_dir() and not named.exists() else named
