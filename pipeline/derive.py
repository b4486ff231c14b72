"""`run_pipeline.py cache prune | encode | merge`: one cache from another, or from several."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from manifests.errors import PipelineError

if TYPE_CHECKING:
    from cache.derive import Change
    from cache.store import Store


@dataclass(kw_only=True, slots=True)
class Prune:
    """Keep some of the attention maps, for smaller caches and heads. Killed? Run the same command again."""

    cache: str = "runs/cache"
    """A complete cache of priors: a folder or s3://bucket/prefix. It is only read."""
    to: str = "runs/pruned"
    """Where the smaller cache goes. It names the same image cache."""
    channels: str = "64"
    """K: the K maps that agree best with the train split's masks; or which ones: 0,5,17 (layer * heads + head)."""
    ranking: Path | None = None
    """analysis.json of `analyze` on these maps: K best by its cIoU; default: they are ranked here, on 200 samples."""
    images: str | None = None
    """Where the image cache is, if it was moved."""


@dataclass(kw_only=True, slots=True)
class Encode:
    """The same priors in fewer bytes; what it costs in precision is measured, printed and kept in cache.json."""

    cache: str = "runs/cache"
    """A complete cache of priors: a folder or s3://bucket/prefix. It is only read."""
    to: str = "runs/encoded"
    """Where the encoded cache goes. It names the same image cache."""
    encoding: Literal["lz4", "log8"] = "log8"
    """lz4: compressed, bit for bit the same values, slower to read. log8: attention in 8 bits, half of its bytes."""
    images: str | None = None
    """Where the image cache is, if it was moved."""


@dataclass(kw_only=True, slots=True)
class Merge:
    """Caches of the same LMM and settings as one: the samples of the first, then those of the second, and so on."""

    cache: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A complete cache of priors, a folder or s3://bucket/prefix; give it twice or more often: --cache A --cache B."""
    to: str = "runs/merged"
    """Where the merged cache goes. Image caches that differ become one at images/ in it."""


def run_prune(args: Prune) -> None:
    """Prune with a progress bar; the last line is JSON."""
    from cache.derive import pruned
    from cache.store import Store

    store, wanted = Store.open(args.cache), _parsed(args.channels)
    how: dict[str, Any] = {"method": "named by hand"}
    if isinstance(wanted, int):
        wanted, how = _best(args, wanted)
    elif args.ranking is not None:
        raise PipelineError(f"--channels {args.channels} names the maps, --ranking ranks them: give one of the two")
    _derive("prune", store, args.to, args.images, pruned(store, wanted, how))


def _best(args: Prune, count: int) -> tuple[list[int], dict[str, Any]]:
    """The best maps in the order of their numbers, and what they were chosen by."""
    from cache.priors import Priors
    from stages.analyze.report import read_ranking
    from stages.train_head.ranking import METHOD, rank_maps

    priors = Priors.open(args.cache, images_dir=args.images)
    if not 1 <= count <= priors.channels:
        raise PipelineError(f"--channels {count}: {args.cache} has {priors.channels} maps")
    if args.ranking is not None:
        wanted, how = read_ranking(args.ranking, priors.identity).best(count)
    else:
        ranking = rank_maps(priors)
        wanted = ranking.best(count)
        how = {"method": METHOD, "split": "train", "samples": ranking.samples, "objects": ranking.objects}
        how["scores"] = [round(float(ranking.scores[channel]), 4) for channel in wanted]
    print(f"the best {count} of {priors.channels} maps on {how['objects']} objects: {wanted}")
    return wanted, how


def run_encode(args: Encode) -> None:
    """Encode with a progress bar and print the errors; the last line is JSON."""
    from cache.derive import encoded, require_complete
    from cache.store import Store

    require_complete(store := Store.open(args.cache))
    change = encoded(store, args.encoding)
    for name, value in change.soft[args.encoding].items():
        print(f"{name:>24}  {value:.4g}" if isinstance(value, float) else f"{name:>24}  {value}")
    _derive("encode", store, args.to, args.images, change)


def run_merge(args: Merge) -> None:
    """Merge with a progress bar; the last line is JSON."""
    from tqdm import tqdm

    from cache.merge import merge
    from cache.store import Store

    start = time.perf_counter()
    sources = [Store.open(each) for each in args.cache]
    store = merge(sources, args.to, progress=lambda units: tqdm(units, desc="merge", unit="unit"))
    report("merge", store, time.perf_counter() - start, {"merged": list(args.cache)}, sources)


def _derive(command: str, source: Store, to: str, images: str | None, change: Change) -> None:
    from cache.derive import derive

    start = time.perf_counter()
    store = derive(source, to, change, images=images, progress=lambda units: _shown(command, units, source))
    report(command, store, time.perf_counter() - start, change.hard | change.soft, [source])


def report(command: str, store: Store, seconds: float, about: dict[str, Any], sources: Sequence[Store]) -> None:
    """One line for the reader, one of JSON."""
    from cache.priors import Priors

    priors = Priors.open(store.place)
    objects = max(1, priors.objects())
    before, after = (sum(sum(each.stored_bytes().values()) for each in stores) for stores in (sources, [store]))
    record: dict[str, Any] = {
        "command": f"cache {command}",
        "cache": store.name,
        "objects": objects,
        "bytes": {"before": before, "after": after},
        "bytes_per_object": {"before": round(before / objects, 1), "after": round(after / objects, 1)},
        "seconds": round(seconds, 2),
    }
    print(
        f"cache {command}: {objects:,} {priors.counted()}, {before:,} bytes became {after:,} "
        f"({100 * after / max(1, before):.1f} %) in {seconds:.1f} s: {store.name}"
    )
    print(json.dumps(record | about))


def _shown(command: str, units: Sequence[int], source: Store) -> Iterable[int]:
    from tqdm import tqdm

    size = source.meta.unit_bytes
    with tqdm(desc=command, total=len(units) * size, unit="B", unit_scale=True) as bar:
        for unit in units:
            yield unit
            bar.update(size)


def _parsed(channels: str) -> int | list[int]:
    """64: so many of the best; [0, 5, 17]: these ("5," is a list as well). PipelineError for anything else."""
    parts = channels.removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise PipelineError(f"--channels {channels}: give the number of maps to keep, or a list of maps such as 0,5,17")
    numbers = [int(part) for part in parts]
    return numbers if "," in channels else numbers[0]
