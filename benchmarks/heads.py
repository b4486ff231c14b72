"""The heads against each other: every head of the registry on the embedded default's cache, same recipe, three seeds.

    python -m benchmarks.heads            two hours on 2 cores; finished runs are kept in runs/heads
    python -m benchmarks.heads --quick    a minute or two, claims nothing

Numbers are of held-out scenes (testA and testB; PNG's val2017). Which head is best is said by the validation split
alone: the mean of val cIoU over the seeds. A head without parameters takes no steps; it chooses on training samples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.embedded import QUICK, extracted
from pipeline.comparison import Condition, Job, compare
from pipeline.comparison_table import Found, about, summaries, table, write_json
from stages.train_head.heads import HEADS
from stages.train_head.recipe import RECIPES

REFERENCE = "unet-sam"


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    cache: Path = Path("runs/cache")
    """The embedded default's cache (`run_pipeline.py extract`); made if it is missing."""
    out: Path = Path("runs/heads")
    """Where finished runs are kept: run it again with the same one to go on; delete it to start anew."""
    seeds: int = 3
    epochs: int | None = None
    """Default: the demo's."""
    processes: int = 2
    """Runs side by side, one CPU thread each; they share the GPU, so seconds per epoch are those of a shared one."""
    device: str = "auto"
    """cuda, cpu or auto."""
    quick: bool = False
    """One seed, one epoch, a small cache of its own."""


def main(config: Config) -> dict[str, Any]:
    if config.quick:
        out = config.out / "quick"
        config = replace(config, out=out, cache=out / "cache", seeds=1, epochs=1)
    config.out.mkdir(parents=True, exist_ok=True)
    cache = extracted(config.cache, *(QUICK if config.quick else ()))
    conditions = [Condition(name=name, title=name, cache=cache, options={"head": name}) for name in HEADS]
    given: dict[str, Any] = {"out": config.out, "epochs": config.epochs, "device": config.device}
    jobs = [Job(condition=each, seed=seed, **given) for seed in range(config.seeds) for each in conditions]
    found = compare(
        jobs, config.processes, lambda so_far: write_json(config.out / "heads.json", record(config, so_far))
    )
    result = record(config, found)
    write_json(config.out / "heads.json", result)
    show(result)
    return result


def record(config: Config, found: Found) -> dict[str, Any]:
    """Everything as JSON; heads whose seeds are not all done yet are not in it."""
    rows = {name: summaries(found, name, config.seeds, baseline=REFERENCE) for name in HEADS}
    rows = {name: row for name, row in rows.items() if row}
    validated = {name: row["val_ciou"]["mean"] for name, row in rows.items() if "val_ciou" in row}
    return {
        "heads": rows,
        "best_on_validation": max(validated, key=lambda name: validated[name]) if validated else None,
        "complete": len(found) == len(HEADS) * config.seeds,
        "recipe": {"seeds": config.seeds, "epochs": config.epochs or RECIPES["demo"].epochs},
        **about(config.device, config.processes),
        "quality_claim": not config.quick,
    }


def show(result: dict[str, Any]) -> None:
    """The table, then everything as one JSON line."""
    rows = result["heads"]
    seeds = result["recipe"]["seeds"]
    print(f"\npercent, mean and half the range of {seeds} seed(s); change: seed by seed, to {REFERENCE}")
    print(table(rows, {name: name for name in rows}))
    print(f"best on the validation split: {result['best_on_validation']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
