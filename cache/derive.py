"""A cache made from another one: fewer attention maps, or the same values in fewer bytes. The source is only read.

    derive(source, "runs/small", pruned(source, [0, 5, 17], how={"given": "by hand"}))
    derive(source, "runs/packed", encoded(source, "log8"))

The result is a cache like any other. Its identity holds, in `derived`, what was done and to what, so that heads and
extractions that mean the source refuse it; images stay where they are. Killed? The same call makes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from cache import log8, shards
from cache.create import META, require_ours
from cache.identity import digest
from cache.layout import ArraySpec
from cache.log8 import CODES, PEAK
from cache.places import Place, Where, place_of
from cache.plan import PlanRows
from cache.priors import read_maps
from cache.source import images_of
from cache.store import Store
from manifests.errors import CacheError

Encoding = Literal["lz4", "log8"]
Arrays = dict[str, np.ndarray]
Progress = Callable[[Sequence[int]], Iterable[int]]
FILES: Final = ("manifest.parquet", "rows.parquet")
MEASURED: Final = 1000  # objects, at most, that an encoding's error is measured on


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What is done to a cache of priors."""

    hard: dict[str, Any]
    """For the identity: {"action": …}, all that makes the content another one."""
    soft: dict[str, Any]
    """What else a reader may want to know."""
    arrays: tuple[ArraySpec, ...]
    apply: Callable[[Arrays], Arrays]
    """Slots of every array -> the same slots of the new arrays."""


def pruned(source: Store, channels: Sequence[int], how: Mapping[str, Any]) -> Change:
    """Only these attention maps, in this order. how: JSON values, why these.

    CacheError for no channels, for some that there are not, and for one that is named twice.
    """
    maps = source.meta.arrays[CODES if CODES in source.meta.arrays else "attention"]
    count, chosen = maps.item_shape[0], list(channels)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < count:
        raise CacheError(f"{source.name} has the maps 0 to {count - 1}; --channels names {chosen or 'none'}")
    if twice := sorted({channel for channel in chosen if chosen.count(channel) > 1}):
        raise CacheError(f"--channels names {', '.join(map(str, twice))} twice; name every map once")

    def apply(arrays: Arrays) -> Arrays:
        return {name: values[:, chosen] if _of_maps(name) else values for name, values in arrays.items()}

    return Change(
        hard={"action": "prune", "channels": chosen, "of": count},
        soft={"prune": dict(how)},
        arrays=tuple(
            replace(spec, item_shape=(len(chosen), *spec.item_shape[1:])) if _of_maps(spec.name) else spec
            for spec in source.meta.arrays.values()
        ),
        apply=apply,
    )


def encoded(source: Store, encoding: Encoding) -> Change:
    """lz4: the same values, compressed. log8: attention in eight bits (`cache.log8`).

    What that does to the maps is measured and goes into `soft`. CacheError for a cache that is encoded so already.
    """
    known = source.meta.arrays
    if CODES in known if encoding == "log8" else any(spec.codec == "lz4" for spec in known.values()):
        raise CacheError(f"{source.name} is encoded as {encoding} already; choose another --encoding or --cache")
    if encoding == "lz4":
        # single numbers only grow: blosc adds a header to every chunk
        specs = [replace(s, codec="lz4") if s.dtype in ("float16", "uint8") else s for s in known.values()]
    else:
        specs = [spec for old in known.values() for spec in (_log8_specs(old) if old.name == "attention" else [old])]

    def apply(arrays: Arrays) -> Arrays:
        if encoding == "lz4":
            return arrays
        coded = [log8.encode(maps) for maps in arrays["attention"]]  # slot by slot: it takes some copies on the way
        found = {name: values for name, values in arrays.items() if name != "attention"}
        return found | {CODES: np.stack([codes for codes, _ in coded]), PEAK: np.stack([peaks for _, peaks in coded])}

    change = Change(hard={"action": "encode", "encoding": encoding}, soft={}, arrays=tuple(specs), apply=apply)
    return replace(change, soft={encoding: measured(source, change)})


def derive(
    source: Store,
    to: Where,
    change: Change,
    *,
    images: Where | None = None,
    progress: Progress = lambda units: units,
) -> Store:
    """The changed copy of a complete cache of priors, at `to`: unit by unit, all of the source checked on the way.

    images: where the source's image cache is, if it was moved; the result names the same one.
    Raises CacheError for a source that is not complete or is damaged, and for places that hold another cache;
    IdentityMismatch, with every differing field, for one that was derived otherwise.
    """
    require_complete(source)
    place = place_of(to)
    require_ours(place, "priors", FILES, "--to")
    identity, soft = derived_identity(source, change), source.meta.soft | change.soft
    if source.meta.identity.get("images") is not None:
        soft["images"] = place.relative(place_of_images(source, images))
    with place.sole_writer():
        store = Store.create_or_resume(
            place, kind="priors", identity=identity, soft=soft, arrays=change.arrays, units=source.meta.units,
            files={name: source.place.read(name) for name in FILES if name in source.meta.files}, option="--to",
        )  # fmt: skip
        for unit in progress(store.missing_units()):
            store.write_unit(unit, change.apply(unit_of(source, unit)), record_of(source, unit))
        store.finish(PlanRows(source.file("rows.parquet")).planned_failures())
    return store


def derived_identity(source: Store, change: Change) -> dict[str, Any]:
    """The source's, and one more entry in `derived`."""
    made_from = {"identity": digest(source.meta.identity), "plan": source.commits.plan}
    before = source.meta.identity.get("derived", [])
    return source.meta.identity | {"derived": [*before, change.hard | {"source": made_from}]}


def original_maps(identity: Mapping[str, Any], count: int) -> list[int]:
    """Of every attention map of a cache its number among the `count` maps that were extracted."""
    found = list(range(count))
    for done in identity.get("derived", []):
        if done["action"] == "prune":
            found = [found[channel] for channel in done["channels"]]
    return found


def content_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what only says which samples it is about: caches that agree in the rest mean the same by
    their values. Left out: the image cache's rows, which cache one was derived from, and that values are compressed.
    """
    found = dict(identity)
    if isinstance(images := found.get("images"), dict):
        found["images"] = {name: value for name, value in images.items() if name != "rows"}
    done = [{k: v for k, v in each.items() if k != "source"} for each in found.pop("derived", [])]
    if kept := [each for each in done if each != {"action": "encode", "encoding": "lz4"}]:
        found["derived"] = kept
    return found


def require_complete(source: Store) -> None:
    """CacheError unless all of a cache of priors is there."""
    if source.meta.kind != "priors":
        raise CacheError(f"{source.name} is a cache of {source.meta.kind}, a cache of priors is needed")
    if not source.complete:
        raise CacheError(
            f"{source.name} is not complete ({len(source.missing_units())} of {source.meta.units} units are missing); "
            "run the command that made it again to resume"
        )


def place_of_images(source: Store, given: Where | None = None) -> Place:
    """The place of the image cache that a cache names. CacheError if there is none."""
    place = place_of(images_of(source, given))
    if place.size(META) is None:
        raise CacheError(f"{place} holds no image cache; check --images")
    return place


def unit_of(source: Store, unit: int) -> Arrays:
    """The whole unit of every array, checked."""
    sizes = {name: spec.slots_per_unit for name, spec in source.meta.arrays.items()}
    return {name: source.read(name, unit * size, (unit + 1) * size) for name, size in sizes.items()}


def record_of(source: Store, unit: int) -> dict[str, Any]:
    """What the commit of a unit records. CacheError if the commit is gone."""
    if (commit := source.commits.get(unit)) is None:
        raise CacheError(f"{source.name} is complete but the commit record of unit {unit} is gone; extract it again")
    return commit["record"]


def measured(source: Store, change: Change) -> dict[str, Any]:
    """What a change of the encoding does to attention: errors after the heads' normalisation (map / its sum), bytes.

    Of at most MEASURED objects, evenly spread over those that did not fail; the same cache gives the same numbers.
    """
    slots = _evenly(object_slots(source), MEASURED)
    errors: list[np.ndarray] = []
    totals = dict.fromkeys(("before", "after", "values", "zeroed"), 0)
    worst, equal = 0.0, True
    for slot in slots.tolist():
        stored = {n: source.read(n, slot, slot + 1) for n in source.meta.arrays if _of_maps(n)}
        coded, size = _through_shards(change.arrays, change.apply(stored))
        totals["before"] += _through_shards(tuple(source.meta.arrays.values()), stored)[1]
        totals["after"] += size
        equal &= all(name in coded and np.array_equal(coded[name], values) for name, values in stored.items())
        maps = read_maps(source, slot, slot + 1)[0]
        found = log8.decode(coded[CODES], coded[PEAK])[0] if CODES in coded else coded["attention"][0]
        old, new = (normalised(each) for each in (maps, found))
        errors.append(np.abs(new - old).sum((-2, -1)))
        kept = (old > 0) & (new > 0)
        worst = max(worst, float((np.abs(new - old)[kept] / old[kept]).max(initial=0)))
        totals["values"] += old.size
        totals["zeroed"] += int(((old > 0) & (new == 0)).sum())
    l1 = np.concatenate(errors) if errors else np.zeros(1)
    objects = max(1, len(slots))
    return {
        "objects": len(slots),
        "l1_error_mean": float(l1.mean()),
        "l1_error_max": float(l1.max()),
        "value_error_max": worst,
        "values_zeroed": totals["zeroed"] / max(1, totals["values"]),
        "bit_equal": equal,
        "attention_bytes_before": round(totals["before"] / objects, 1),
        "attention_bytes_after": round(totals["after"] / objects, 1),
    }


def _of_maps(name: str) -> bool:
    return name.startswith("attention")


def _log8_specs(old: ArraySpec) -> list[ArraySpec]:
    codes = replace(old, name=CODES, dtype="uint8")
    return [codes, replace(old, name=PEAK, item_shape=old.item_shape[:1], dtype="float32", codec="raw")]


def _through_shards(specs: Sequence[ArraySpec], values: Arrays) -> tuple[Arrays, int]:
    """One slot of every array written and read back -> what was read, and the bytes that a slot takes."""
    found, total = {}, 0
    for spec in (replace(each, slots_per_unit=1, slots_per_chunk=1) for each in specs if each.name in values):
        data = np.concatenate(shards.encode(spec, values[spec.name])[0])
        found[spec.name] = shards.read(spec, shards.from_memory(data), 0, 1, size=data.nbytes)
        total += data.nbytes - 4  # the crc32c of the index is the shard's
    return found, total


def normalised(maps: np.ndarray) -> np.ndarray:
    """[C, h, w] -> float64, each map / its sum, as heads do it; zeros stay zeros."""
    sums = maps.sum((-2, -1), dtype=np.float64, keepdims=True)
    return maps / np.where(sums > 0, sums, 1)


def object_slots(source: Store) -> np.ndarray:
    """int64: the slots of all objects of samples that did not fail, in order."""
    rows = PlanRows(source.file("rows.parquet"))
    failed = {failure["sample"] for failure in source.failures()}
    slots, counts = rows.numbers("slot").astype(np.int64), rows.numbers("objects").astype(np.int64)
    kept = np.array([row for row in np.flatnonzero(slots >= 0).tolist() if row not in failed], np.int64)
    return np.concatenate([np.zeros(0, np.int64), *(slots[row] + np.arange(counts[row]) for row in kept)])


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread."""
    return values[np.arange(min(len(values), most)) * len(values) // max(1, min(len(values), most))]
