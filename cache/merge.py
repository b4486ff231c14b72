"""Several caches of one LMM and one set of settings as one: the samples of the first, then those of the second, …

    merge([Store.open("runs/refcoco"), Store.open("runs/png")], "runs/both")

Every sample's values are those of its source, bit for bit; units keep what they hold and get new numbers. Images that
occur in several caches are kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cache.create import require_ours
from cache.derive import FILES, content_of, place_of_images, record_of, require_complete, unit_of
from cache.identity import differing
from cache.layout import ArraySpec
from cache.places import Place, Where, place_of
from cache.plan import IMAGE_SCHEMA, ROW_SCHEMA, ImageRow, ImageRows, PlanRows, rows_bytes, rows_table
from cache.store import Store
from manifests.errors import CacheError, IdentityMismatch
from manifests.manifest import Samples, write_manifest

Progress = Callable[[Sequence[int]], Iterable[int]]
_SLOTS: Final = {"slot": "attention_mass", "token_slot": "hidden_scale", "answer_slot": "answer_scale"}


def merge(sources: Sequence[Store], to: Where, progress: Progress = lambda units: units) -> Store:
    """The caches, all complete, as one at `to`, in the order given; a killed merge goes on when it is repeated.

    If they name one image cache it is kept; else a merged one is made at images/ in `to`.
    Raises IdentityMismatch with every differing field and both values, CacheError for a sample_id that occurs twice
    and for a place that is not ours.
    """
    if len(sources) < 2:
        raise CacheError("a merge needs two caches at least: --cache A --cache B")
    for source in sources:
        require_complete(source)
        _require_equal(sources[0], source)
    place = place_of(to)
    require_ours(place, "priors", FILES, "--to")
    with ExitStack() as stack:
        stack.enter_context(place.sole_writer())
        images = _Images.of(sources, place, stack, progress)
        return _merged(sources, place, images, progress)


class _Images:
    """The image cache of the result, and where in it the images of every source are."""

    def __init__(self, store: Store | None, row_of: Sequence[np.ndarray]) -> None:
        self.store, self.row_of = store, row_of
        """row_of: of every source int64 [its images]; empty where there are no image caches."""

    @classmethod
    def of(cls, sources: Sequence[Store], place: Place, stack: ExitStack, progress: Progress) -> _Images:
        if sources[0].meta.identity.get("images") is None:
            return cls(None, [np.zeros(0, np.int64)] * len(sources))
        stores = [Store.open(place_of_images(source)) for source in sources]
        rows = [ImageRows(store.file("rows.parquet")) for store in stores]
        if not any(differing(stores[0].reference(), store.reference()) for store in stores):
            return cls(stores[0], [np.arange(len(each)) for each in rows])
        where = place.at("images")
        require_ours(where, "images", ["rows.parquet"], "--to")
        stack.enter_context(where.sole_writer())
        return cls(*_merged_images(stores, rows, where, progress))


def _merged(sources: Sequence[Store], place: Place, images: _Images, progress: Progress) -> Store:
    arrays = [
        replace(spec, slots_per_unit=max(source.meta.arrays[name].slots_per_unit for source in sources))
        for name, spec in sources[0].meta.arrays.items()
    ]
    units = [source.meta.units for source in sources]
    rows = pa.concat_tables(_shifted_rows(sources, {spec.name: spec for spec in arrays}, images.row_of))
    identity, named = content_of(sources[0].meta.identity), {}
    if images.store is not None:
        identity["images"], named = images.store.reference(), {"images": place.relative(images.store.place)}
    store = Store.create_or_resume(
        place, kind="priors", identity=identity, soft=_common([each.meta.soft for each in sources], sources) | named,
        arrays=arrays, units=sum(units), option="--to",
        files={"manifest.parquet": _manifest(sources), "rows.parquet": rows_bytes(rows)},
    )  # fmt: skip
    firsts, samples = _starts(units), _starts([len(PlanRows(each.file("rows.parquet"))) for each in sources])
    for unit in progress(store.missing_units()):
        number = int(np.searchsorted(firsts, unit, "right")) - 1
        values = unit_of(sources[number], unit - firsts[number])
        padded = {spec.name: _padded(values[spec.name], spec) for spec in arrays}
        store.write_unit(unit, padded, _shifted(record_of(sources[number], unit - firsts[number]), samples[number]))
    store.finish(PlanRows(store.file("rows.parquet")).planned_failures())
    return store


def _require_equal(first: Store, other: Store) -> None:
    """IdentityMismatch unless the two may be one cache: only what they are about, and their padding, may differ."""

    def comparable(store: Store) -> dict[str, Any]:
        arrays = {
            name: {"item_shape": list(s.item_shape), "dtype": s.dtype, "slots_per_chunk": s.slots_per_chunk,
                   "codec": s.codec}
            for name, s in store.meta.arrays.items()
        }  # fmt: skip
        return content_of(store.meta.identity) | {"cache": {"arrays": arrays}}

    if found := differing(comparable(first), comparable(other)):
        fields = "; ".join(f"{each.field}: {first.name} has {each.stored}, {other.name} {each.given}" for each in found)
        raise IdentityMismatch(f"these caches can not be one: {fields}; extract one of them with the other's settings")


def _manifest(sources: Sequence[Store]) -> bytes:
    """The samples of all; CacheError for an id that two of them have."""
    manifests = [Samples(source.file("manifest.parquet")) for source in sources]
    owner: dict[str, int] = {}
    for number, samples in enumerate(manifests):
        for name in samples.ids():
            if (first := owner.setdefault(name, number)) != number:
                raise CacheError(
                    f"sample {name} is in {sources[first].name} and in {sources[number].name}; merge caches of "
                    "different samples"
                )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        write_manifest(path, chain(*manifests), _common([each.meta for each in manifests], sources))
        return path.read_bytes()


def _common(records: Sequence[Mapping[str, Any]], sources: Sequence[Store]) -> dict[str, Any]:
    """What all records agree in, and under "merged" the rest of each."""
    common = {
        key: value for key, value in records[0].items() if all(key in each and each[key] == value for each in records)
    }
    rest = [{key: value for key, value in each.items() if key not in common} for each in records]
    return common | {
        "merged": [{"cache": source.name} | each for source, each in zip(sources, rest, strict=True)],
    }


def _shifted_rows(
    sources: Sequence[Store], arrays: Mapping[str, ArraySpec], row_of: Sequence[np.ndarray]
) -> Iterable[pa.Table]:
    """Every source's rows.parquet as it is in the result."""
    sample = unit = 0
    for source, images in zip(sources, row_of, strict=True):
        table = PlanRows(source.file("rows.parquet")).table()
        columns = {
            name: table.column(name).to_numpy().astype(np.int64) for name in ("sample", "unit", "image", *_SLOTS)
        }
        placed = columns["unit"] >= 0
        new = {"sample": columns["sample"] + sample, "unit": np.where(placed, columns["unit"] + unit, -1)}
        for name, array in _SLOTS.items():
            old, size = source.meta.arrays[array].slots_per_unit, arrays[array].slots_per_unit
            new[name] = np.where(placed, columns[name] + (columns["unit"] + unit) * size - columns["unit"] * old, -1)
        if len(images):
            new["image"] = np.where(columns["image"] >= 0, images[columns["image"]], -1)
        for name, values in new.items():
            at = ROW_SCHEMA.get_field_index(name)
            table = table.set_column(at, ROW_SCHEMA.field(at), pa.array(values, ROW_SCHEMA.field(at).type))
        yield table
        sample, unit = sample + len(table), unit + source.meta.units


def _merged_images(
    stores: Sequence[Store], rows: Sequence[ImageRows], place: Place, progress: Progress
) -> tuple[Store, list[np.ndarray]]:
    """An image cache that has every image once: the first copy that did not fail, else the first. -> it, row_of."""
    failed = [{entry["image"]: entry for entry in store.failures()} for store in stores]
    chosen: dict[str, tuple[int, int]] = {}  # image -> (number of its store, row there); in order of appearance
    for number, images in enumerate(rows):
        for index, name in enumerate(images.column("image").to_pylist()):
            known = chosen.setdefault(name, (number, index))
            if known[1] in failed[known[0]] and index not in failed[number]:
                chosen[name] = (number, index)
    at = {name: row for row, name in enumerate(chosen)}
    per_unit = max(store.meta.arrays["embedding"].slots_per_unit for store in stores)
    spec = replace(stores[0].meta.arrays["embedding"], slots_per_unit=per_unit)
    table = [
        replace(rows[number][index], slot=row, unit=row // per_unit)
        for row, (number, index) in enumerate(chosen.values())
    ]
    store = Store.create_or_resume(
        place, kind="images", identity=stores[0].meta.identity, soft=_common([s.meta.soft for s in stores], stores),
        arrays=[spec], units=-(-len(table) // per_unit), option="--to",
        files={"rows.parquet": rows_bytes(rows_table(table, IMAGE_SCHEMA))},
    )  # fmt: skip
    places = list(chosen.values())
    for unit in progress(store.missing_units()):
        values, failures = np.zeros(spec.unit_shape, spec.dtype), []
        for slot, (number, index) in enumerate(places[unit * per_unit : (unit + 1) * per_unit]):
            old: ImageRow = rows[number][index]
            stores[number].read("embedding", old.slot, old.slot + 1, values[slot : slot + 1])
            if index in failed[number]:
                failures.append(failed[number][index] | {"image": unit * per_unit + slot})
        store.write_unit(unit, {"embedding": values}, {"failures": failures})
    store.finish()
    return store, [np.array([at[name] for name in each.column("image").to_pylist()], np.int64) for each in rows]


def _shifted(record: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """A commit's record, its failures with the samples' new numbers."""
    failures = [each | {"sample": each["sample"] + samples} for each in record.get("failures", [])]
    return dict(record) | ({"failures": failures} if "failures" in record else {})


def _padded(values: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """The unit in an array of another capacity."""
    out = np.zeros(spec.unit_shape, spec.dtype)
    out[: len(values)] = values
    return out


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]
