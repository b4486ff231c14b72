"""`run_pipeline.py cache ACTION`: look at caches, check them, carry them elsewhere, make one from another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from manifests.errors import PipelineError
from pipeline.derive import Encode, Merge, Prune, run_encode, run_merge, run_prune
from pipeline.transfer import Export, Import, run_export, run_import


@dataclass(kw_only=True, slots=True)
class Info:
    """Shapes, identity, what is done and what is planned, bytes."""

    cache: str = "runs/cache"
    """A priors cache or an image cache: a folder, s3://bucket/prefix, or a file of `cache export`."""


@dataclass(kw_only=True, slots=True)
class Verify:
    """Read every byte: is it what was committed, and is every planned row there, finite and in its range?

    Also of the image cache that a priors cache names.
    """

    cache: str = "runs/cache"
    """A priors cache or an image cache: a folder, s3://bucket/prefix, or a file of `cache export`."""
    images: str | None = None
    """Its image cache, if it is no longer where extraction put it."""
    repair: bool = False
    """Take damaged units back; the same extract command then makes these again, and no others."""


@dataclass(kw_only=True, slots=True)
class Cache:
    """Look at a cache, check it, carry it elsewhere, make a smaller or a larger one of it."""

    action: (
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Prune, tyro.conf.subcommand("prune")]
        | Annotated[Encode, tyro.conf.subcommand("encode")]
        | Annotated[Merge, tyro.conf.subcommand("merge")]
    )


def run_cache(args: Cache) -> None:
    """Run one action."""
    run: dict[type, Callable[[Any], None]] = {Info: info, Verify: verify, Export: run_export, Import: run_import}
    run |= {Prune: run_prune, Encode: run_encode, Merge: run_merge}
    run[type(args.action)](args.action)


def info(args: Info) -> None:
    """Print a table, and the same as JSON in the last line."""
    from cache.source import open_source

    store = open_source(args.cache)
    meta, committed, stored = store.meta, len(store.committed_units()), store.stored_bytes()
    arrays: dict[str, dict[str, Any]] = {
        name: {
            "shape": [meta.units * spec.slots_per_unit, *spec.item_shape],
            "dtype": spec.dtype,
            "slots_per_chunk": spec.slots_per_chunk,
            "slots_per_shard": spec.slots_per_unit,
            "codec": spec.codec,
            "bytes": stored[name],
        }
        for name, spec in meta.arrays.items()
    }
    found: dict[str, Any] = {
        "cache": store.name,
        "kind": meta.kind,
        "state": meta.state,
        "units": {"committed": committed, "planned": meta.units},
        "bytes": {"committed": sum(stored.values()), "planned": meta.units * meta.unit_bytes},
        "failures": len(store.failures()),
        "arrays": arrays,
        "identity": meta.identity,
        "soft": meta.soft,
    }
    print(f"{store.name}: {meta.kind}, {meta.state}, {committed} of {meta.units} units, {found['failures']} failures")
    print(f"{'array':<16} {'dtype':<8} {'shape':<28} {'a chunk':>10} {'GB so far':>10}")
    for name, array in arrays.items():
        shape = " x ".join(map(str, array["shape"]))
        print(
            f"{name:<16} {array['dtype']:<8} {shape:<28} {array['slots_per_chunk']:>10} {array['bytes'] / 1e9:>10.3f}"
        )
    for title, values in (("identity", meta.identity), ("soft", meta.soft)):
        print(title)
        for field, value in _leaves(values):
            print(f"  {field:<32} {value}")
    print(json.dumps(found))


def verify(args: Verify) -> None:
    """Print one line per problem and the rows to redo; JSON in the last line; PipelineError if there is a problem."""
    from cache.container import is_file
    from cache.store import Store

    if "://" not in args.cache and is_file(args.cache):
        results = [_verify_file(args)]
    else:
        store = Store.open(args.cache, check_files=False)
        results = [_verify(store, repair=args.repair)]
        if (named := store.meta.identity.get("images")) is not None:
            results.append(_verify_images(store, args, named))
    print(json.dumps({"caches": results}))
    if left := sum(len(result["problems"]) for result in results if not result.get("mended")):
        cure = "pass --repair, then run the same extract command again to make just these units anew"
        if results[0]["kind"] == "file":
            cure = "copy or export the file again"
        elif args.repair:
            cure = "they were taken back: run the same extract command again to make them anew"
        raise PipelineError(f"{args.cache}: {left} problem(s); {cure}")


def _verify_images(store: Any, args: Verify, named: Any) -> dict[str, Any]:
    from cache.identity import differing
    from cache.source import images_of
    from cache.store import Store

    try:
        images = Store.open(images_of(store, args.images), check_files=False)
        result = _verify(images, repair=args.repair)
        others = [] if result["problems"] else differing(named, images.reference(), "images")
    except PipelineError as error:
        print(error)
        return {"cache": "images", "kind": "images", "problems": [str(error)], "redo": {}}
    if others:
        text = f"{images.name} is not the image cache that {store.name} was made with: {others[0]}"
        print(text)
        result = result | {"problems": [*result["problems"], text], "mended": False}
    return result


def _verify_file(args: Verify) -> dict[str, Any]:
    from cache.hdf5 import H5Cache
    from pipeline.transfer import bars

    if args.repair:
        raise PipelineError(f"{args.cache}: a file can not be repaired; copy or export it again")
    file = H5Cache.open(args.cache)
    with bars() as progress:
        problems = file.verify(progress)
    print("\n".join(problems) or f"{file.name}: every byte as exported")
    return {"cache": file.name, "kind": "file", "problems": problems}


def _verify(store: Any, *, repair: bool) -> dict[str, Any]:
    from tqdm import tqdm

    from cache import verify as checks

    def shown(units: Iterable[int]) -> Iterable[int]:
        return tqdm(units, desc=f"verify {store.meta.kind}", unit="unit")

    committed = len(store.committed_units())
    problems = checks.verify(store, shown)
    for problem in problems:
        print(problem.text)
    redo = {p.unit: list(p.rows) for p in problems if p.unit is not None}
    for unit, rows in redo.items():
        named = f"{len(rows)} rows: {rows[0]} to {rows[-1]}" if rows else "no rows"
        print(f"  to redo: unit {unit} ({named})")
    left = store.meta.units - committed
    if not problems:
        print(f"{store.name}: {committed} of {store.meta.units} units, every byte as committed, every row in order")
        if left:
            print(f"  {left} units are not extracted yet; run the same extract command again")
    elif repair:
        with store.place.sole_writer():
            checks.repair(store, problems)
    return {
        "cache": store.name,
        "kind": store.meta.kind,
        "units": {"committed": committed, "planned": store.meta.units},
        "problems": [problem.text for problem in problems],
        "redo": {str(unit): rows for unit, rows in redo.items()},
        "repaired": repair and bool(problems),
        "mended": repair and not redo,  # nothing is left to do
    }


def _leaves(values: Any, field: str = "") -> Iterable[tuple[str, str]]:
    """("lmm.name", "llava"), … of nested dicts; long lists by their length."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{field}.{key}" if field else key)
    elif isinstance(values, list) and values and all(isinstance(each, dict) for each in values):
        for index, value in enumerate(values):
            yield from _leaves(value, f"{field}[{index}]")
    else:
        text = json.dumps(values)
        yield field, text if len(text) < 100 else f"{text[:80]}… ({len(text)} characters)"
