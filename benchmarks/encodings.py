"""What do a cache's encodings cost? Bytes, errors of the maps, and the RES cIoU of heads that are trained from them.

    python -m benchmarks.encodings            an hour on 2 cores; finished runs are kept in runs/encodings
    python -m benchmarks.encodings --quick    a minute or two, claims nothing

The same recipe, data and seeds from the embedded default's cache as it is, compressed (lz4), in eight bits (log8), and
pruned to half of its maps, the best ones on training samples. Held-out scenes, testA and testB together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.embedded import QUICK, extracted
from cache.derive import Change, derive, encoded, pruned
from cache.priors import Priors
from cache.store import Store
from pipeline.comparison import Condition, Job, compare
from pipeline.comparison_table import about, summary
from stages.train_head.ranking import rank_maps
from stages.train_head.recipe import RECIPES


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    cache: Path = Path("runs/cache")
    """The embedded default's cache (`run_pipeline.py extract`); made if it is missing."""
    out: Path = Path("runs/encodings")
    """Where derived caches and finished runs are kept; delete it to start anew."""
    seeds: int = 3
    epochs: int | None = None
    """Default: the demo's."""
    processes: int = 2
    """Runs side by side, one CPU thread each."""
    device: str = "auto"
    """cuda, cpu or auto."""
    quick: bool = False
    """One seed, one epoch, a small cache of its own."""


def changes(source: Store) -> dict[str, Callable[[], Change]]:
    """What is compared with the cache as it is."""

    def best_half() -> Change:
        priors = Priors.open(source.place)
        return pruned(source, rank_maps(priors).best(priors.channels // 2), {})

    return {
        "lz4": lambda: encoded(source, "lz4"),
        "log8": lambda: encoded(source, "log8"),
        "pruned": best_half,
    }


def derived(config: Config, source: Store) -> dict[str, str]:
    """Every cache that heads are trained from, made where it is missing."""
    found = {"raw": source.name}
    for name, change in changes(source).items():
        found[name] = derive(source, config.out / f"cache-{name}", change()).name
    return found


def main(config: Config) -> dict[str, Any]:
    if config.quick:
        config = replace(config, out=config.out / "quick", seeds=1, epochs=1, cache=config.out / "quick" / "cache")
    config.out.mkdir(parents=True, exist_ok=True)
    source = Store.open(extracted(config.cache, *(QUICK if config.quick else ())))
    caches = derived(config, source)
    given: dict[str, Any] = {"out": config.out, "epochs": config.epochs, "device": config.device}
    compared = [Condition(name=name, title=name, cache=cache) for name, cache in caches.items()]
    jobs = [Job(condition=each, seed=seed, **given) for seed in range(config.seeds) for each in compared]
    found = {job: result["res_ciou"] for job, result in compare(jobs, config.processes).items()}
    return show(config, source, caches, found)


def show(config: Config, source: Store, caches: dict[str, str], found: dict[tuple[str, int], float]) -> dict[str, Any]:
    """The table, then everything as one JSON line."""
    objects = Priors.open(source.place).objects()
    rows: dict[str, dict[str, Any]] = {}
    for name, cache in caches.items():
        store = Store.open(cache)
        rows[name] = {
            "bytes_per_object": round(sum(store.stored_bytes().values()) / objects, 1),
            "res_ciou": summary([found[name, seed] for seed in range(config.seeds)]),
            "change": summary([found[name, seed] - found["raw", seed] for seed in range(config.seeds)]),
            **store.meta.soft.get(name, {}),
        }
    print(f"\n{'cache':<8} {'bytes/object':>12} {'L1 error':>9} {'RES cIoU':>15} {'change':>15}   percent (max - min)")
    for name, row in rows.items():
        ciou, change = (f"{100 * row[k]['mean']:.1f} ({100 * row[k]['spread']:.1f})" for k in ("res_ciou", "change"))
        error = f"{100 * row.get('l1_error_mean', 0):.2f}"
        print(f"{name:<8} {row['bytes_per_object']:>12,.0f} {error:>9} {ciou:>15} {change:>15}")
    result = {
        "encodings": rows,
        "recipe": {"seeds": config.seeds, "epochs": config.epochs or RECIPES["demo"].epochs},
        **about(config.device, config.processes),
        "quality_claim": not config.quick,
    }
    (config.out / "encodings.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
