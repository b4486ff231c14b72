"""Single bits of a finished cache are flipped, each is looked for by reading and by verifying, and flipped back."""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cache.layout import ArraySpec
from cache.store import Store
from cache.verify import verify
from manifests.errors import CacheError

PAYLOAD: Final = ("data", "chunk crc")  # what reading must notice by itself; it never looks at the index
_CRC: Final = 4
_INDEX_ENTRY: Final = 16


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, stop) of a file; `array` and `unit`: what to read, where the file is one of theirs."""

    root: Path
    path: Path
    start: int
    stop: int
    array: str
    unit: int


def parts(root: Path) -> dict[str, list[Part]]:
    """Everything in a cache that has bytes, by kind."""
    store = Store.open(root)
    found: defaultdict[str, list[Part]] = defaultdict(list)
    first = min(store.meta.arrays)
    for spec in store.meta.arrays.values():
        for unit in store.planned_units:
            path = root / store.meta.group / spec.name / spec.shard_key(unit)
            for kind, start, stop in _shard_parts(spec):
                found[kind].append(Part(root, path, start, stop, spec.name, unit))
    for path in sorted(root.rglob("*")):
        name, size = _kind(path.relative_to(root)), path.stat().st_size
        if name and path.is_file() and size:
            unit = int(path.stem) if name == "commits" else 0
            found[name].append(Part(root, path, 0, size, first, unit))
    return dict(found)


def _shard_parts(spec: ArraySpec) -> Iterator[tuple[str, int, int]]:
    values = spec.slots_per_chunk * math.prod(spec.item_shape) * np.dtype(spec.dtype).itemsize
    chunks = spec.slots_per_unit // spec.slots_per_chunk
    for chunk in range(chunks):
        start = chunk * (values + _CRC)
        yield "data", start, start + values
        yield "chunk crc", start + values, start + values + _CRC
    start = chunks * (values + _CRC)
    yield "index", start, start + chunks * _INDEX_ENTRY + _CRC


def _kind(path: Path) -> str | None:
    """Of a file that is no shard."""
    if path.parts[0] == "images" or path.name.startswith("c."):
        return None
    return "commits" if path.parts[0] == "commits" else path.name


def flip_bits(roots: list[Path], flips: int, rng: random.Random) -> dict[str, Counter[str]]:
    """-> by kind of bytes: "flips", and of these how many were noticed "by_reading" and "by_verify"."""
    found: defaultdict[str, list[Part]] = defaultdict(list)
    for root in roots:
        for kind, some in parts(root).items():
            found[kind] += some
    kinds = sorted(found)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for number in range(flips):
        kind = kinds[number % len(kinds)]
        part = rng.choice(found[kind])
        position, bit = rng.randrange(part.start, part.stop), 1 << rng.randrange(8)
        _flip(part.path, position, bit)
        counts[kind] += Counter(flips=1, by_reading=_read_fails(part), by_verify=_verify_fails(part.root))
        _flip(part.path, position, bit)
    return counts


def undetected(counts: dict[str, Counter[str]]) -> int:
    """Flips that verifying missed, and those of payload that reading missed."""
    missed = sum(count["flips"] - count["by_verify"] for count in counts.values())
    return missed + sum(counts[kind]["flips"] - counts[kind]["by_reading"] for kind in PAYLOAD)


def stale_shard(root: Path, other: Path) -> dict[str, Any]:
    """A shard of another run, of the right shape, with checksums of its own, in the place of ours: who notices?"""
    store = Store.open(root)
    spec = store.meta.arrays["attention"]
    path = root / store.meta.group / spec.name / spec.shard_key(0)
    stale, sound = other / path.relative_to(root), path.read_bytes()
    same_size, same = len(sound) == stale.stat().st_size, sound == stale.read_bytes()
    shutil.copy(stale, path)
    part = Part(root, path, 0, 0, spec.name, 0)
    noticed = {"by_verify": _verify_fails(root), "by_reading": _read_fails(part), "right_size": same_size and not same}
    path.write_bytes(sound)
    return noticed


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ bit]))


def _read_fails(part: Part) -> bool:
    try:
        store = Store.open(part.root)
        size = store.meta.arrays[part.array].slots_per_unit
        store.read(part.array, part.unit * size, (part.unit + 1) * size)
    except CacheError:
        return True
    return False


def _verify_fails(root: Path) -> bool:
    try:
        return bool(verify(Store.open(root, check_files=False)))
    except CacheError:
        return True
