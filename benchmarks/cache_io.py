"""How fast is the cache? Against numpy.memmap and np.save + fsync of the same bytes, and against other readers.

    python -m benchmarks.cache_io            LLaVA-1.5-7B's units: 25 repeats, 2.3 GB of disk, 10 minutes on 2 cores
    python -m benchmarks.cache_io --quick    fewer objects and repeats: a minute or two, no claim

Everything takes turns in one run, on an otherwise idle machine, and speeds are medians of paired ratios (1 is as fast
as numpy, 0.5 takes twice its time). Reading: one object (1024×24×24 float16) at a time in random order, all of it in
the page cache, into one page-aligned buffer that is used again. Writing: all arrays of a unit as extraction plans it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import h5py
import numpy as np
import tyro
import zarr

from benchmarks import scale
from benchmarks.encoded_bytes import encodings, real_maps
from benchmarks.ratios import ratio
from cache import shards
from cache.layout import ArraySpec
from cache.plan import IMAGE_SCHEMA
from cache.store import Store
from manifests.masks import encode
from manifests.schema import Object, Piece, Sample
from stages.extract.plan import Images, make_plan
from stages.extract.presets import PRESETS
from stages.extract.sam import SAM_PRESETS
from stages.extract.texts import WordCount

LLAVA: Final = PRESETS["llava"]
PHRASE: Final = "the man in a red shirt"  # RefCOCO's expressions have 3.5 words, PNG's sentences more
MARKS: Final = {"read_over_memmap_crc": 0.40, "read_over_memmap_nocrc": 0.80, "write_over_npsave": 0.80}

Read = Callable[[int], Any]
"""Copies object i of the whole cache to the buffer that was agreed on."""


@dataclass(kw_only=True, slots=True)
class Config:
    """What is measured."""

    dir: Path = Path("runs/benchmarks/cache_io")
    """Made, filled and deleted: a folder on the disk that is asked about."""
    cache: Path = Path("runs/cache")
    """The embedded default's cache, for the encodings' errors on real maps; a small one is made if it is missing."""
    units: int = 8
    """Of the read benchmark, 56 objects each."""
    reads: int = 100
    """Objects that each reader reads in a repeat."""
    repeats: int = 25
    quick: bool = False
    """2 units, 20 objects, 5 repeats; no claim."""

    def __post_init__(self) -> None:
        if self.quick:
            self.units, self.reads, self.repeats = 2, 20, 5


def llava_arrays() -> list[ArraySpec]:
    """The arrays of a cache of LLaVA-1.5-7B's priors of samples with three objects, as extraction plans them."""
    mask = encode(np.ones((4, 4), bool))
    thing = Object(object_id="0", mask=mask, is_thing=True, plural=False, category="", phrase=PHRASE)
    pieces = tuple(piece for index in range(3) for piece in (Piece(text=PHRASE, object=index), Piece(text=".")))
    sample = Sample(
        sample_id="0", dataset="refcoco", split="train", task="referring", image_id="0", image_path="0.jpg",
        height=4, width=4, pieces=pieces, objects=(thing,) * 3,
    )  # fmt: skip
    samples = [replace(sample, sample_id=str(index)) for index in range(100)]
    images = Images(row_of={"0.jpg": 0}, rows=IMAGE_SCHEMA.empty_table(), missing={})
    return make_plan(samples, WordCount(LLAVA), LLAVA, SAM_PRESETS["vit_l"], images, batch_size=4).arrays


def unit_values(spec: ArraySpec, seed: int) -> np.ndarray:
    """Random, finite values."""
    return np.random.default_rng(seed).standard_normal(spec.unit_shape, np.float32).astype(spec.dtype)


def paired_seconds(
    config: Config, turns: Mapping[str, Callable[[int], None]], prepare: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every entry in every repeat; they take turns, in an order that changes. `prepare` is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(1 + config.repeats):  # the first one warms up
        for name in np.random.default_rng(repeat).permutation(list(turns)).tolist():
            prepare()
            start = time.perf_counter()
            turns[name](repeat)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare_reads(config: Config, spec: ArraySpec) -> dict[str, Any]:
    """Ratios of memmap's time to everyone's, of the same bytes."""
    out = shards.aligned_empty((1, *spec.item_shape), spec.dtype)
    readers = _readers(config, spec, out)
    objects = config.units * spec.slots_per_unit
    expected = np.concatenate([unit_values(spec, unit)[-1:] for unit in range(config.units)])
    for name, read in readers.items():  # everyone reads the same, and the page cache is warm
        for unit in range(config.units):
            out[:] = 0
            read((unit + 1) * spec.slots_per_unit - 1)
            assert np.array_equal(out[0], expected[unit]), name

    def turn(read: Read) -> Callable[[int], None]:
        def run(repeat: int) -> None:
            for index in np.random.default_rng(repeat).integers(0, objects, config.reads).tolist():
                read(index)

        return run

    for index in range(objects):
        readers["memmap"](index)
        readers["ours, crc"](index)
    seconds = paired_seconds(config, {name: turn(read) for name, read in readers.items()})
    memmap = seconds["memmap"]
    return {
        "read_over_memmap_crc": ratio(memmap, seconds["ours, crc"]),
        "read_over_memmap_nocrc": ratio(memmap, seconds["ours, no crc"]),
        "zarr_python": ratio(memmap, seconds["zarr"]),
        "tensorstore": ratio(memmap, seconds["tensorstore"]) if "tensorstore" in seconds else None,
        "h5py": ratio(memmap, seconds["h5py"]),
        "read_us_per_object": {k: round(1e6 * median(v) / config.reads, 1) for k, v in seconds.items()},
    }


def _readers(config: Config, spec: ArraySpec, out: np.ndarray) -> dict[str, Read]:
    """Every reader of the same objects, written here to its own format."""
    store = Store.create_or_resume(
        config.dir / "cache", kind="priors", identity={}, soft={}, arrays=[spec], units=config.units, files={}
    )
    folder = config.dir / "cache" / store.meta.group / spec.name
    flat, file = config.dir / "flat", h5py.File(config.dir / "objects.h5", "w")
    shape = (config.units * spec.slots_per_unit, *spec.item_shape)
    dataset = file.create_dataset("objects", shape, spec.dtype, chunks=(1, *spec.item_shape))
    with flat.open("wb") as target:
        for unit in range(config.units):
            values = unit_values(spec, unit)
            target.write(values.data)
            dataset[unit * len(values) : (unit + 1) * len(values)] = values
            store.write_unit(unit, {spec.name: values}, {})
    file.flush()
    mapped = np.memmap(flat, spec.dtype, "r", shape=shape)
    array = zarr.open_array(folder, mode="r")
    readers: dict[str, Read] = {
        "memmap": lambda index: np.copyto(out[0], mapped[index]),
        "ours, crc": lambda index: store.read(spec.name, index, index + 1, out),
        "ours, no crc": lambda index: store.read(spec.name, index, index + 1, out, check=False),
        "h5py": lambda index: dataset.read_direct(out, np.s_[index : index + 1]),
        "zarr": lambda index: np.copyto(out[0], np.asarray(array[index])),
    }
    try:
        import tensorstore
    except ImportError:
        return readers
    kvstore = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    opened = tensorstore.open(kvstore, recheck_cached_data=False).result()
    return readers | {"tensorstore": lambda index: np.copyto(out[0], opened[index].read().result())}


def compare_writes(config: Config, specs: Sequence[ArraySpec]) -> dict[str, Any]:
    """Ratios of np.save's time (with fsync) to that of writing a unit, with all checksums and read back."""
    values = {spec.name: unit_values(spec, 0) for spec in specs}
    root = config.dir / "write"
    stores: list[Store] = []

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        options: dict[str, Any] = {"identity": {}, "soft": {}, "units": 1, "files": {}}
        stores[:] = [Store.create_or_resume(root / "cache", kind="priors", arrays=specs, **options)]
        os.sync()

    def save(read_back: bool) -> None:
        for name, array in values.items():
            path = root / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
                if read_back and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if read_back and not np.array_equal(np.load(path), array):
                raise OSError(f"{path}: the disk gave back other bytes")

    turns: dict[str, Callable[[int], None]] = {
        "np.save": lambda _: save(False),
        "np.save, read back": lambda _: save(True),
        "ours": lambda _: stores[0].write_unit(0, values, {}),
    }
    seconds = paired_seconds(config, turns, fresh)
    return {
        "write_over_npsave": ratio(seconds["np.save"], seconds["ours"]),
        "write_over_npsave_read_back": ratio(seconds["np.save, read back"], seconds["ours"]),
        "write_ms_per_unit": {name: round(1e3 * median(each), 1) for name, each in seconds.items()},
        "unit_mb": round(sum(array.nbytes for array in values.values()) / 1e6, 1),
    }


def bytes_per_object(specs: Sequence[ArraySpec]) -> dict[str, int]:
    """Of an object's attention on disk, checksum and index entry included; and of all arrays, padding included."""
    attention = next(spec for spec in specs if spec.name == "attention")
    grid64 = replace(attention, item_shape=(attention.item_shape[0], 64, 64))
    per_object = {"native": attention.shard_bytes, "grid64": grid64.shard_bytes}
    per_object["native_all_arrays"] = sum(spec.shard_bytes for spec in specs)
    return {name: -(-size // attention.slots_per_unit) for name, size in per_object.items()}


def opening(config: Config) -> dict[str, Any]:
    """Opening a cache of a million objects, and how that grows; --quick: of 20,000, under another name."""
    if config.quick:
        return {"open_20k_s": scale.main(scale.Config(objects=20_000, small=2_000))["open_1m_s"]}
    found = scale.main(scale.Config())
    return {name: found[name] for name in ("open_1m_s", "open_1m_over_10k")}


def main(config: Config) -> dict[str, Any]:
    specs, load = llava_arrays(), os.getloadavg()[0]
    shutil.rmtree(config.dir, ignore_errors=True)
    config.dir.mkdir(parents=True)
    try:
        result = compare_reads(config, next(spec for spec in specs if spec.name == "attention"))
        result |= compare_writes(config, specs)
        result["bytes_per_object"] = bytes_per_object(specs)
        result["encodings"] = encodings(real_maps(config.cache, config.dir), specs)
        result["bytes_per_object"] |= {name: each["bytes_per_object"] for name, each in result["encodings"].items()}
        result |= opening(config)
    finally:
        shutil.rmtree(config.dir, ignore_errors=True)
    result |= {
        "marks": MARKS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "load_of_others": round(load, 1),  # processes that wanted the CPU before this one began
        "versions": {module.__name__: module.__version__ for module in (np, zarr, h5py)},
        "date": time.strftime("%Y-%m-%d"),
        "quality_claim": not config.quick,
    }
    for key, value in result.items():
        print(f"{key:>30}  {value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
