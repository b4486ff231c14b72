"""Is every byte of a cache what was committed, and does what was committed make sense?

Digests are compared of everything: cache.json, the metadata files, the commit records, the shards with their indices.
Then the values: finite, in their range, and there for every planned row that did not fail.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from cache import create, shards
from cache.checks import all_finite
from cache.commits import DamagedCommit
from cache.layout import ArraySpec
from cache.log8 import CODES, PEAK
from cache.shards import Fetch, ShardFormatError, Written
from cache.store import FAILURES, SUBJECT, Store
from manifests.errors import CacheError

RANGES: Final[dict[str, tuple[float, float]]] = {  # of every value; float16 rounds
    "attention": (0.0, 65504.0),
    PEAK: (0.0, 65504.0),
    "attention_mass": (0.0, 1.001),  # a part of a softmax, summed over the grid; of a maximum over words it may be more
    "hidden_scale": (0.0, float("inf")),
    "answer_scale": (0.0, float("inf")),
}
_MEAN: Final = 0.01  # how far a map's mean may lie from 1: float16 keeps three digits, tiny grids average little
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong."""

    text: str
    unit: int | None = None
    """The unit that has to be made again; None: nothing that extraction could redo."""
    rows: tuple[int, ...] = ()
    """The samples (or images) in that unit."""


def verify(store: Store, progress: Progress = lambda units: units) -> list[Problem]:
    """Everything that is wrong, [] for a sound cache; reads every byte. An incomplete cache may be sound."""
    problems = [Problem(text=text) for text in create.damaged_files(store.place, store.meta).values()]
    rows = _Rows(store) if not problems else None
    for unit in progress(store.planned_units):
        texts = list(_unit_problems(store, unit, rows))
        members = tuple(rows.members(unit)) if rows else ()
        problems += [Problem(text=text, unit=unit, rows=members) for text in texts]
    problems += [
        Problem(text=f"{store.commits.path(unit)}: the plan has no such unit", unit=unit)
        for unit in store.commits.units()
        if unit not in store.planned_units
    ]
    return problems


def repair(store: Store, problems: Iterable[Problem]) -> list[int]:
    """Take the units with problems back, so that extract makes them again; -> these units.

    zarr.json files are written anew, a damaged failures.jsonl is by the next extract. CacheError if a manifest or a
    plan is damaged, and if the cache became another one since the problems were found. The caller holds
    `place.sole_writer()`.
    """
    if create.read_meta(store.place, check_files=False) != store.meta:
        raise CacheError(f"{store.name} was changed since it was verified; nothing was taken back: verify it again")
    units = sorted({problem.unit for problem in problems if problem.unit is not None})
    create.mend(store.place, store.meta, {})
    if store.complete and (units or FAILURES in create.damaged_files(store.place, store.meta)):
        store.reopen()
    for unit in units:
        store.commits.remove(unit)
    if left := create.damaged_files(store.place, store.meta):
        raise CacheError(f"{next(iter(left.values()))}; run the same extract command again: it knows what was there")
    return units


class _Rows:
    """Which samples or images lie in which unit and slots."""

    def __init__(self, store: Store) -> None:
        self.failed = {failure[SUBJECT[store.meta.kind]] for failure in _failures(store)}
        empty = np.empty(0, np.int64)
        self._rows, self._units, self._slots, self._counts = empty, empty, empty, empty
        if "rows.parquet" not in store.meta.files:
            return
        columns = ["unit", "slot", *(["objects"] if store.meta.kind == "priors" else [])]
        table = pq.read_table(store.file("rows.parquet"), columns=columns)
        units, slots, *counts = (table.column(name).to_numpy() for name in columns)
        placed = np.flatnonzero(units >= 0)
        self._rows = placed[np.argsort(units[placed], kind="stable")]
        self._units, self._slots = units[self._rows], slots[self._rows]
        self._counts = counts[0][self._rows] if counts else np.ones_like(self._slots)

    def members(self, unit: int) -> list[int]:
        return self._rows[self._of(unit)].tolist()

    def expected(self, unit: int, spec: ArraySpec) -> np.ndarray:
        """bool [slots of the unit]: does a planned row that did not fail have it?"""
        expected = np.zeros(spec.slots_per_unit, bool)
        of = self._of(unit)
        for row, slot, count in zip(self._rows[of], self._slots[of], self._counts[of], strict=True):
            if int(row) not in self.failed:
                start = slot - unit * spec.slots_per_unit
                expected[start : start + count] = True
        return expected

    def _of(self, unit: int) -> slice:
        first, last = np.searchsorted(self._units, [unit, unit + 1])
        return slice(int(first), int(last))


def _failures(store: Store) -> Iterator[dict[str, Any]]:
    """Those of the records that can be read: of the others `_unit_problems` tells."""
    for unit in store.committed_units():
        with suppress(DamagedCommit):
            if (commit := store.commits.get(unit)) is not None:
                yield from commit["record"].get("failures", [])


def _unit_problems(store: Store, unit: int, rows: _Rows | None) -> Iterator[str]:
    try:
        commit = store.commits.get(unit)
    except DamagedCommit as error:
        yield str(error)
        return
    if commit is None:
        if store.complete:
            yield f"unit {unit}: the cache is complete but {store.commits.path(unit)} is missing"
        return
    for spec in store.meta.arrays.values():
        put = commit["shards"][spec.name]
        try:
            fetch = _whole(store, spec, unit, put)
            shards.check_index(spec, fetch, put.bytes)
            values = shards.read(spec, fetch, 0, spec.slots_per_unit, crcs=put.crcs, size=put.bytes)
        except (FileNotFoundError, ShardFormatError) as error:
            yield f"{store.damaged(spec, unit)}: {error}"
            continue
        except OSError as error:
            if error.errno != errno.EIO:  # too many open files, no network: no reason to call the data damaged
                raise
            yield f"{store.damaged(spec, unit)}: {error}"
            continue
        mean = store.meta.identity.get("merge") != "max"
        if problem := _wrong_values(spec, values, rows, unit, mean):
            yield f"{store.name}: array {spec.name}, unit {unit}: {problem}"


def _whole(store: Store, spec: ArraySpec, unit: int, committed: Written) -> Fetch:
    """The shard in memory, read once; ShardFormatError if its digest is another."""
    data = np.empty(committed.bytes, np.uint8)
    with store.place.opened(spec, create.shard_name(store.meta, spec, unit), committed.bytes) as shard:
        shard.fetch(0, [data.data])
    if (found := shards.digest([data])) != committed.blake3:
        raise ShardFormatError(f"its blake3 is {found}, {committed.blake3} was committed")
    return shards.from_memory(data)


def _wrong_values(spec: ArraySpec, values: np.ndarray, rows: _Rows | None, unit: int, mean: bool) -> str | None:
    if not all_finite(values):
        return "it holds inf or nan"
    low, high = RANGES.get(spec.name, (-np.inf, np.inf)) if mean or spec.name != "attention_mass" else (0, np.inf)
    if values.min() < low or values.max() > high:
        return f"values from {values.min():g} to {values.max():g}, they should lie in [{low:g}, {high:g}]"
    if rows is None or spec.name not in ("attention", CODES, "embedding"):
        return None
    expected = rows.expected(unit, spec)
    there = np.array([bool(slot.any()) for slot in values])
    if (missing := np.flatnonzero(expected & ~there)).size:
        return (
            f"slot {unit * spec.slots_per_unit + missing[0]} is planned and did not fail, and holds nothing but zeros"
        )
    if (stray := np.flatnonzero(there & ~expected)).size:
        return f"slot {unit * spec.slots_per_unit + stray[0]} belongs to no row, and is not zero"
    if spec.name == "attention" and expected.any():
        means = values[expected].mean((-2, -1), dtype=np.float32)
        if (off := np.abs(means[means > 0] - 1)).size and off.max() > _MEAN:
            return f"a map's mean is {1 + off.max():.3f} or as far below 1; it should be 1"
    if spec.name == CODES and not np.isin(values[expected].max((-2, -1)), (0, 255)).all():
        return "a map's largest code is not 255, that of its maximum"
    return None
