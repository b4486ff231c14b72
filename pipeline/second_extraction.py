"""The other way to merge an object's words, mean or max: a cache like the first one, by a second extraction."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import tyro

from manifests.errors import PipelineError
from pipeline import extract
from pipeline.extract_settings import from_settings

if TYPE_CHECKING:
    from cache.priors import Priors
    from pipeline.ablate import Ablate
    from pipeline.extract import Extract


def other_merge(merge: str) -> str:
    return "max" if merge == "mean" else "mean"


def second_cache(args: Ablate, priors: Priors) -> str:
    """OUT/cache-max (or -mean), made unless it is there; it differs from the first cache in its merge only.

    It says what that will cost, and uses the first cache's SAM embeddings. PipelineError, with the reason, where it can
    not be made: weights or data are not here, or the cache does not say how it was extracted.
    """
    merge = other_merge(priors.identity["merge"])
    cache = args.out / f"cache-{merge}"
    if _differences(priors, str(cache)) == []:
        return str(cache)
    planned = _planned(args, priors, merge, str(cache))
    meta, objects = priors.store.meta, priors.objects()
    print(
        f"merge_{merge} needs a second extraction: {len(priors):,} samples ({objects:,} {priors.counted()}) through "
        f"{planned.lmm}, {meta.units * meta.unit_bytes / 1e9:.3f} GB of priors into {cache}; SAM's embeddings are "
        f"used again{_first_took(priors)}; --no-merge leaves it out",
        flush=True,
    )
    extract.run(planned)
    others = _differences(priors, str(cache))
    if others is None:
        raise PipelineError(f"--extract={args.extract!r} left no complete cache at {cache}: no --cache, no --dry-run")
    if others:
        raise PipelineError(
            f"{cache} differs from {args.cache} in more than its merge ({'; '.join(others[:3])}): "
            'mend --extract="…" and delete that folder, or pass --no-merge'
        )
    return str(cache)


def _planned(args: Ablate, priors: Priors, merge: str, cache: str) -> Extract:
    """The first extraction's options with the other merge, and with what the user says in --extract."""
    from cache.source import images_of
    from cache.store import Store

    store, soft = priors.store, priors.store.meta.soft
    cure = 'say how it was extracted: --extract="--lmm … --dataset …"'
    if not isinstance(store, Store) or "derived" in priors.identity or "merged" in soft:
        raise PipelineError(
            f"{args.cache} was exported, pruned, encoded or merged, and a second extraction gives none of these: "
            "ablate the cache it was made from"
        )
    if "settings" not in soft and not args.extract:
        raise PipelineError(f"{args.cache} is of an earlier version and does not name its settings: {cure}")
    first = from_settings(soft.get("settings", {}))
    batch_size = soft.get("batch_size", extract.DEFAULT_BATCH)
    images = str(images_of(store, args.images))
    first = replace(first, cache=cache, images=images, batch_size=batch_size, device=args.device)
    first = replace(first, local=find_spec("ray") is None, merge="max" if merge == "max" else "mean")
    try:
        words = shlex.split(args.extract)
    except ValueError as error:
        raise PipelineError(f"--extract={args.extract!r}: {error}") from None
    return tyro.cli(extract.Extract, prog="--extract", args=words, default=first)


def _differences(priors: Priors, cache: str) -> list[str] | None:
    """What sets the second cache apart from the first besides the merge; None: it is not there, or not complete."""
    from cache.identity import differing
    from cache.store import Store
    from manifests.manifest import Samples

    try:
        store = Store.open(cache)
    except PipelineError:
        return None
    if not store.complete:
        return None
    expected = priors.identity | {"merge": other_merge(priors.identity["merge"])}
    found = [f"{d.field}: {d.stored} and {d.given}" for d in differing(expected, store.meta.identity)]
    same = list(priors.samples.ids()) == list(Samples(store.file("manifest.parquet")).ids())
    return found if same else [*found, "its samples"]


def _first_took(priors: Priors) -> str:
    """How long the first extraction took, if its record is beside the cache."""
    from pipeline.extract_record import ENDING

    try:
        seconds: dict[str, Any] = json.loads(priors.store.place.read_beside(ENDING))["seconds"]
        return f"; the first one took {seconds['total'] / 60:.1f} minutes, SAM included"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
