"""How does grounding degrade with a weaker LMM? The same head on priors of earlier checkpoints of the embedded LMM.

    python -m benchmarks.weak_lmm --device cuda --processes 8    minutes on a GPU with 16 cores
    python -m benchmarks.weak_lmm                                hours on 2 cores; what is finished is kept
    python -m benchmarks.weak_lmm --quick                        minutes on 2 cores, claims nothing

Worse means: the same architecture, data and recipe, stopped after a few of the 10,600 steps that the embedded LMM took
(its first training of 6,000, then 4,600 more). All of the LMM is then worse, the vision tower with it: it has seen
fewer pictures (until step 900 only listings of pictures in rows and columns). How much worse is said by the next-token
loss on held-out scenes. Without the text prompt the head has the attention alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import tyro

from benchmarks.embedded import CUT, QUICK, extracted
from benchmarks.random_weights import random_llava
from pipeline.comparison import Condition, Job, compare
from pipeline.comparison_table import Found, about, summaries, table, write_json
from pipeline.train_head import choose_device
from stages.extract.checkpoint import file_sha256
from stages.extract.presets import TINY
from stages.train_head.recipe import RECIPES

NO_TEXT: Final = "_no_text"


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    cache: Path = Path("runs/cache")
    """The embedded default's cache (`run_pipeline.py extract`); made if it is missing."""
    out: Path = Path("runs/weak_lmm")
    """Where the weak LMMs, their caches and finished runs are kept; run it again with the same one to go on."""
    steps: tuple[int, ...] = (600, 1500)
    """After how many optimiser steps an LMM is taken."""
    workers: int = 1
    """Processes that render the scenes an LMM is trained on."""
    seeds: int = 3
    epochs: int | None = None
    """Of the heads; default: the demo's."""
    processes: int = 2
    """Heads trained side by side, one CPU thread each."""
    device: str = "auto"
    """cuda, cpu or auto: of the LMMs' training, of extraction, and of the heads."""
    quick: bool = False
    """Two LMMs of 20 and 40 steps, one seed, one epoch, a small cache of its own."""


def main(config: Config) -> dict[str, Any]:
    if config.quick:
        out = config.out / "quick"
        config = replace(config, out=out, cache=out / "cache", seeds=1, epochs=1, steps=(20, 40))
    config.out.mkdir(parents=True, exist_ok=True)
    lmms = {"random": random_llava(config.out)}
    lmms |= {f"after_{steps}": weak_lmm(config, steps) for steps in sorted(config.steps)}
    compared = conditions(config, lmms)
    given: dict[str, Any] = {"out": config.out, "epochs": config.epochs, "device": config.device}
    jobs = [Job(condition=each, seed=seed, **given) for seed in range(config.seeds) for each in compared]
    losses = {name: held_out_loss(folder) for name, folder in (lmms | {"embedded": TINY / "lmm"}).items()}

    def result(found: Found) -> dict[str, Any]:
        return record(config, compared, losses, found)

    file = config.out / "weak_lmm.json"
    done = result(compare(jobs, config.processes, lambda found: write_json(file, result(found))))
    write_json(file, done)
    print(f"\npercent, mean and half the range of {config.seeds} seed(s); change: to the embedded LMM, seed by seed")
    print(table(done["rows"], {each.name: each.title for each in compared}))
    told = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
    print(f"next-token loss on held-out scenes: {told}")
    print(json.dumps(done))
    return done


def weak_lmm(config: Config, steps: int) -> Path:
    """The folder of the LMM after so many steps of its first training, trained here unless it is there."""
    folder = config.out / f"lmm-{steps}"
    if (folder / "training.json").exists():  # written last, and only at the end: no step before it is saved
        return folder
    device = choose_device(config.device)
    print(f"training the LMM for {steps} steps on {device}", flush=True)
    given = {"--out": folder, "--stop": steps, "--save-every": steps, "--device": device, "--workers": config.workers}
    words = [str(word) for pair in given.items() for word in pair]
    if device != "cpu" or config.quick:
        words.append("--no-compile")
    # a process of its own: its threads and its GPU memory go with it
    subprocess.run([sys.executable, "-m", "stages.extract.tiny.train_lmm", *words], check=True)
    return folder


def conditions(config: Config, lmms: dict[str, Path]) -> list[Condition]:
    """The embedded LMM and the others, whose caches are made here, each with and without the text prompt."""
    common = QUICK if config.quick else ()
    caches = {"embedded": extracted(config.cache, *common)}
    images = ("--images", str(config.cache / "images"), "--sam", "tiny", "--device", config.device)
    for name, folder in reversed(lmms.items()):
        cache = config.out / f"cache-{folder.name}-{file_sha256(folder / 'model.safetensors')[:8]}"
        caches[name] = extracted(cache, "--lmm", str(folder), *images, *CUT, *common)
    titles = {name: f"LMM after {name.removeprefix('after_')} steps" for name in lmms}
    titles |= {"embedded": "embedded LMM, 10,600 steps", "random": "LMM with random weights"}
    return [
        Condition(
            name=f"{name}{suffix}", title=f"{titles[name]}{', no text prompt' if suffix else ''}", cache=cache,
            options={"prompt_text": False} if suffix else {},
        )
        for suffix in ("", NO_TEXT)
        for name, cache in caches.items()
    ]  # fmt: skip


def held_out_loss(folder: Path) -> float | None:
    """The LMM's next-token loss on held-out scenes when its training ended; None: it was not trained."""
    try:
        return json.loads((folder / "training.json").read_text())["losses"][-1]["held_out"]
    except FileNotFoundError:
        return None


def record(config: Config, compared: list[Condition], losses: dict[str, float | None], found: Found) -> dict[str, Any]:
    """Everything as JSON; rows whose seeds are not all done yet are not in it."""
    rows = {}
    for each in compared:
        baseline = f"embedded{NO_TEXT}" if each.name.endswith(NO_TEXT) else "embedded"
        if row := summaries(found, each.name, config.seeds, baseline=baseline):
            rows[each.name] = {"title": each.title, **row}
    return {
        "rows": rows,
        "held_out_loss": losses,
        "complete": len(rows) == len(compared),
        "recipe": {"seeds": config.seeds, "epochs": config.epochs or RECIPES["demo"].epochs, "steps": config.steps},
        **about(config.device, config.processes),
        "quality_claim": not config.quick,
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
