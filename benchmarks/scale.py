"""A cache of a million objects that is only planned: what planning, opening, listing and random access cost.

    python -m benchmarks.scale --objects 20000 --small 2000     (half a minute; bare: 1,000,000 and 10,000 objects)

Samples as RefCOCO has them (3.3 objects in a text, masks of about 200 bytes), planned with LLaVA-1.5-7B's shapes and a
stand-in for its tokenizer. The caches have the plan's units and slots, with one number a slot instead of maps and
states, and no unit is written: opening a complete cache looks at its metadata files only. Every number comes from a
process of its own. Prints a table, and one JSON object as its last line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import numpy as np
import pyarrow as pa
import tyro

from cache.layout import ArraySpec
from cache.plan import rows_bytes
from cache.priors import Priors
from cache.store import Store
from manifests.manifest import write_manifest
from manifests.masks import Rle, from_segmentation
from manifests.schema import Object, Piece, Sample
from stages.extract.plan import Plan, make_plan, plan_images
from stages.extract.presets import PRESETS
from stages.extract.processor import Answer, Prompt
from stages.extract.sam import SAM_PRESETS
from stages.extract.texts import WordCount

LLAVA, SAM = PRESETS["llava"], SAM_PRESETS["vit_l"]
SIZE: Final = (480, 640)  # height, width
COUNTS: Final = (3, 3, 4, 3, 3, 4, 3, 3, 4, 3)  # objects of a text: 3.3
MASKS: Final = 20_000  # different ones, more than a row group holds: it finds nearly no mask twice to save
WORDS: Final = [
    "man",
    "woman",
    "red",
    "left",
    "right",
    "the",
    "a",
    "of",
    "on",
    "with",
    "blue",
    "dog",
    "chair",
    "table",
    "standing",
    "near",
    "front",
    "second",
]
ACCESSES: Final = 1000


@dataclass(kw_only=True, slots=True)
class Config:
    """Two sizes, so that growth shows."""

    objects: int = 1_000_000
    small: int = 10_000
    out: Path | None = None
    """Folder for the two caches, deleted afterwards; default: a temporary one. A million objects take 0.4 GB."""


class Described(Sequence[Sample]):
    """Samples made when they are asked for, the same every time."""

    def __init__(self, objects: int) -> None:
        self.length = objects * len(COUNTS) // sum(COUNTS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        choose = random.Random(index)
        phrases = [" ".join(choose.choices(WORDS, k=4)) for _ in range(COUNTS[index % len(COUNTS)])]
        masks, image = _masks(), index // 2  # two texts of every image
        pieces = [part for k, text in enumerate(phrases) for part in (Piece(text=text, object=k), Piece(text="."))]
        objects = [
            Object(
                object_id=f"{index}-{k}", mask=masks[choose.randrange(MASKS)], is_thing=True, plural=False,
                category="person", phrase=phrase,
            )
            for k, phrase in enumerate(phrases)
        ]  # fmt: skip
        return Sample(
            sample_id=f"refcoco-{index}", dataset="refcoco", split="val" if index % 20 == 0 else "train",
            task="referring", image_id=str(image), image_path=f"train2014/COCO_train2014_{image:012}.jpg",
            height=SIZE[0], width=SIZE[1], pieces=tuple(pieces), objects=tuple(objects),
        )  # fmt: skip


@cache
def _masks() -> list[Rle]:
    """Shapes with rough outlines; their texts have about 200 bytes."""
    noise = np.random.default_rng(0)
    masks = []
    for _ in range(MASKS):
        columns = int(noise.integers(60, 90))
        tops = noise.integers(100, 140) + noise.integers(-8, 9, columns).cumsum().clip(-50, 50)
        bottoms = noise.integers(300, 350) + noise.integers(-8, 9, columns).cumsum().clip(-50, 50)
        edges = np.stack([tops, bottoms], 1) + SIZE[0] * (noise.integers(0, 500) + np.arange(columns))[:, None]
        runs = np.diff(edges.ravel(), prepend=0, append=SIZE[0] * SIZE[1])
        masks.append(from_segmentation({"size": list(SIZE), "counts": runs.tolist()}, *SIZE))
    return masks


class StandIn(WordCount):
    """A fast tokenizer: ids that depend on the words, one to two a word."""

    def __init__(self) -> None:
        super().__init__(LLAVA)
        self._prompt = cache(super().prompt)

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        return self._prompt(prompt, size)

    def answer(self, sample: Sample) -> Answer:
        ids: list[int] = []
        objects: list[int] = []
        words: list[int] = []
        spoken = 0
        for piece in sample.pieces:
            for word in piece.text.split():
                tokens = [len(word) * 997 + ord(word[0])] * (1 + len(word) // 6)
                ids += tokens
                words += [spoken] * len(tokens)
                objects += [-1 if piece.object is None else piece.object] * len(tokens)
                spoken += 1
        return Answer(ids=ids, objects=objects, words=words)


def plan(objects: int, root: Path) -> dict[str, float]:
    """Plan so many objects and make both caches, as `extract` does; seconds, and MiB above what the imports take."""
    samples = Described(objects)
    _masks()
    before = _resident()
    start = time.perf_counter()
    images = plan_images(samples, root, SAM, hashed=False)
    found = make_plan(samples, StandIn(), LLAVA, SAM, images, batch_size=8)
    planned = time.perf_counter() - start
    store = _create(root, found, samples)
    return {
        "plan_s": planned,
        "create_s": time.perf_counter() - start - planned,
        "plan_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20,
        "objects": found.objects,
        "samples": len(samples),
        "units": found.units,
        "manifest_mb": (root / "manifest.parquet").stat().st_size / 1e6,
        "rows_mb": (root / "rows.parquet").stat().st_size / 1e6,
        "image_rows_mb": (root / "images" / "rows.parquet").stat().st_size / 1e6,
        "cache_gb_if_extracted": store.meta.units * sum(spec.shard_bytes for spec in found.arrays) / 1e9,
    }


def _create(root: Path, found: Plan, samples: Described) -> Store:
    path = root.parent / f"{root.name}.parquet"
    write_manifest(path, samples, {})
    manifest = path.read_bytes()
    path.unlink()
    options: dict[str, Any] = {"soft": {"images": "images"}}
    images = Store.create_or_resume(
        root / "images", kind="images", identity={"sam": "vit_l"}, arrays=_small(found.image_arrays),
        units=found.image_units, files={"rows.parquet": rows_bytes(found.image_rows)}, **options,
    )  # fmt: skip
    return Store.create_or_resume(
        root, kind="priors", identity={"lmm": "llava", "images": images.reference()}, arrays=_small(found.arrays),
        units=found.units, files={"manifest.parquet": manifest, "rows.parquet": rows_bytes(found.rows)}, **options,
    )  # fmt: skip


def _small(arrays: Sequence[ArraySpec]) -> list[ArraySpec]:
    """The same slots, with one number in each, so that the plan fits on any disk."""
    return [replace(a, item_shape=(1,) * len(a.item_shape), slots_per_chunk=a.slots_per_unit) for a in arrays]


def complete(root: Path) -> None:
    """Mark the caches as complete, without the payload."""
    for folder in (root, root / "images"):
        meta = Store.open(folder).meta
        (folder / "failures.jsonl").write_bytes(b"")
        files = meta.files | {"failures.jsonl": sha256(b"").hexdigest()}
        (folder / "cache.json").write_bytes(replace(meta, files=files, state="complete").to_bytes())


def listed(root: Path) -> dict[str, float]:
    """What `cache info` asks of a cache."""
    start = time.perf_counter()
    store = Store.open(root)
    _ = store.committed_units(), store.missing_units(), store.failures()
    return {"list_s": time.perf_counter() - start}


def opened(root: Path) -> dict[str, float]:
    """Open, choose the samples to train on, and hold all that reading needs of every sample."""
    _warm(root)
    before = _resident()
    start = time.perf_counter()
    priors = Priors.open(root, allow_partial=True)
    seconds = time.perf_counter() - start
    count = len(priors.samples.where(split=["train"], task=["referring"]))
    ready = time.perf_counter() - start
    assert priors.image_rows is not None and 0 < count < len(priors) and priors.objects() > 0
    numbers = [priors.rows.numbers(name) for name in ("unit", "image", "objects")]
    numbers += [priors.image_rows.numbers(name) for name in ("unit", "slot")]
    codes = [priors.samples.codes(name) for name in ("split", "task", "dataset")]
    return {
        "open_s": seconds,
        "open_and_select_s": ready,
        "index_bytes": sum(array.nbytes for array in numbers + codes),
        "resident_bytes": _resident() - before,
    }


def accessed(root: Path) -> dict[str, float]:
    """Milliseconds for a sample and its row, in random order, each for the first time."""
    priors = Priors.open(root, allow_partial=True)
    chosen = random.Random(0).sample(range(len(priors)), min(ACCESSES, len(priors)))
    start = time.perf_counter()
    for index in chosen:
        _ = priors.samples[index], priors.rows[index]
    return {"access_ms": 1000 * (time.perf_counter() - start) / len(chosen)}


def _warm(root: Path) -> None:
    """The files are in the page cache and the libraries' buffers made, so that the disk is not what is measured."""
    Priors.open(root, allow_partial=True).samples.where(split=["val"])


def _resident() -> int:
    """Bytes of this process in RAM, without what allocators keep for later."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(objects: int, root: Path) -> dict[str, float]:
    """All of it for one size, each in a fresh process."""
    found = _alone(plan, objects, root) | _alone(listed, root)
    found["open_planned_s"] = _alone(opened, root)["open_s"]
    complete(root)
    runs = [_alone(opened, root) for _ in range(3)]
    found |= {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    found |= _alone(accessed, root)
    for name in ("index", "resident"):
        found[f"{name}_bytes_per_object"] = found.pop(f"{name}_bytes") / found["objects"]
    return found


def _alone(function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main(config: Config) -> dict[str, Any]:
    out = config.out or Path(mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    large, small = (measure(objects, out / str(objects)) for objects in (config.objects, config.small))
    print(f"{'':<28}{config.objects:>14,}{config.small:>14,}{'ratio':>10}")
    for name in large:
        ratio = large[name] / small[name] if small[name] else float("nan")
        print(f"{name:<28}{large[name]:>14.4g}{small[name]:>14.4g}{ratio:>10.3g}")
    result = {
        "open_1m_s": round(large["open_s"], 4),
        "open_1m_over_10k": round(large["open_s"] / small["open_s"], 2),
        "objects": config.objects,
        "large": {name: round(value, 4) for name, value in large.items()},
        "small": {name: round(value, 4) for name, value in small.items()},
    }
    shutil.rmtree(out if config.out is None else out / str(config.objects))
    shutil.rmtree(out / str(config.small), ignore_errors=True)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
