"""`run_pipeline.py cache export | import`: a cache as one HDF5 file for another cluster, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from cache.container import Progress
    from cache.source import Source


@dataclass(kw_only=True, slots=True)
class Export:
    """Write a complete cache into one HDF5 file; train-head and evaluate read it as it is (--cache FILE)."""

    cache: str = "runs/cache"
    """A complete cache of priors, or an image cache: a folder or s3://bucket/prefix."""
    to: Path = Path("priors.h5")
    """The file to write."""
    with_images: bool = False
    """Put SAM's embeddings into the file too: then it needs nothing else."""
    images: str | None = None
    """Where the image cache is, if it was moved; only for --with-images."""
    overwrite: bool = False
    """Replace a file of that name."""


@dataclass(kw_only=True, slots=True)
class Import:
    """Rebuild a cache from such a file, byte for byte. Killed? Run the same command again."""

    cache: str = "runs/cache"
    """Where to write it, a folder or s3://bucket/prefix; an image cache in the file goes to images/ in it."""
    file: Annotated[Path, tyro.conf.arg(name="from")] = Path("priors.h5")
    """A file that `cache export` made."""
    images: str | None = None
    """Another place for the image cache."""


def run_export(args: Export) -> None:
    """Export with a progress bar; the last line is JSON: file, bytes, objects, seconds, MB/s."""
    from cache.source import images_of
    from cache.store import Store
    from cache.transfer import export

    start = time.perf_counter()
    store = Store.open(args.cache)
    images = Store.open(images_of(store, args.images)) if args.with_images else None
    with bars() as progress:
        export(store, images, args.to, overwrite=args.overwrite, progress=progress)
    _report("export", args.to, store, start, {"with_images": args.with_images})


def run_import(args: Import) -> None:
    """Import with a progress bar; the last line is JSON, as for `run_export`."""
    from cache.hdf5 import H5Cache
    from cache.transfer import import_

    start = time.perf_counter()
    source = H5Cache.open(args.file)
    with bars() as progress:
        import_(args.file, args.cache, args.images, progress=progress)
    _report("import", args.file, source, start, {"cache": args.cache})


@contextmanager
def bars() -> Iterator[Progress]:
    """A bar for every step, in bytes per second."""
    from tqdm import tqdm

    bar, current = tqdm(disable=True), ""

    def progress(step: str, done: int, total: int) -> None:
        nonlocal bar, current
        if step != current:
            bar.close()
            bar, current = tqdm(desc=step, total=total, unit="B", unit_scale=True), step
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        bar.close()


def _report(command: str, file: Path, source: Source, start: float, about: dict[str, Any]) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(source.file("rows.parquet"), columns=["objects"] if source.meta.kind == "priors" else ["slot"])
    counted = (
        {"objects": pc.sum(rows.column("objects")).as_py()} if source.meta.kind == "priors" else {"images": len(rows)}
    )
    size, seconds = file.stat().st_size, time.perf_counter() - start
    mb_per_s = round(size / 1e6 / seconds, 1)
    shown = ", ".join(f"{number:,} {what}" for what, number in counted.items())
    print(f"cache {command}: {shown}, {size:,} bytes in {seconds:.1f} s ({mb_per_s} MB/s): {file}")
    record = {"command": f"cache {command}", "file": str(file), "bytes": size, "seconds": round(seconds, 3)}
    print(json.dumps(record | {"mb_per_s": mb_per_s} | counted | about))
