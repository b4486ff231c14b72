"""A small cache to test with: two arrays, three units, values that depend on (array, unit) only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cache.layout import ArraySpec
from cache.plan import ROW_SCHEMA, PlanRow, rows_bytes, rows_table
from cache.store import Store
from cache.verify import verify

UNITS = 3
ARRAYS = [
    ArraySpec(name="attention", item_shape=(3, 4, 5), dtype="float16", slots_per_unit=6),
    ArraySpec(name="scale", item_shape=(), dtype="float32", slots_per_unit=8, slots_per_chunk=4),
]
IDENTITY: dict[str, Any] = {"lmm": {"weights": "aa11", "revision": "main"}, "merge": "mean", "layers": [0, 1, 2]}
SOFT = {"data": "/data/one", "versions": {"zarr": "3.1.6"}}
_ROWS = [PlanRow(sample=unit, unit=unit, slot=6 * unit, objects=5, token_counts=(0,) * 5) for unit in range(UNITS)]
FILES = {"manifest.parquet": b"the samples", "rows.parquet": rows_bytes(rows_table(_ROWS, ROW_SCHEMA))}
PLANNED_FAILURES = [{"sample": 9, "reason": "no pixels"}]


def values(unit: int) -> dict[str, np.ndarray]:
    """The arrays of a unit; the last slot of each is padding, all zeros (zarr would like to leave it out)."""
    rng = np.random.default_rng(unit)
    arrays = {spec.name: rng.normal(size=spec.unit_shape).astype(spec.dtype) for spec in ARRAYS}
    maps = np.abs(arrays["attention"].astype(np.float32))
    arrays["attention"] = (maps / maps.mean((-2, -1), keepdims=True)).astype(np.float16)
    for array in arrays.values():
        array[-1] = 0
    return arrays


def record(unit: int) -> dict[str, Any]:
    return {"samples": unit + 1, "failures": [{"sample": 20 - unit, "reason": "out of memory", "attempt": 2}]}


def make(root: Path, **changes: Any) -> Store:
    settings = {"kind": "priors", "identity": IDENTITY, "soft": SOFT, "arrays": ARRAYS, "units": UNITS, "files": FILES}
    return Store.create_or_resume(root, **(settings | changes))


def fill(store: Store) -> None:
    for unit in store.missing_units():
        store.write_unit(unit, values(unit), record(unit))


def made(root: Path) -> Store:
    """A complete cache."""
    store = make(root)
    fill(store)
    store.finish(PLANNED_FAILURES)
    return store


def root_of(store: Store) -> Path:
    """The folder of a cache."""
    return Path(store.name)


def texts(store: Store) -> list[str]:
    """What `verify` says."""
    return [problem.text for problem in verify(store)]


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything under a folder, byte for byte; None for folders."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def shard(root: Path, unit: int) -> Path:
    return root / "priors.zarr" / "attention" / f"c.{unit}.0.0.0"
