"""Can a training be killed? SIGKILL at random steps, the same command again, and the weights of an undisturbed run.

    python -m benchmarks.resume            20 kills, ten minutes on 2 cores
    python -m benchmarks.resume --quick    4 kills, a minute or two

`train-head` itself, on a small cache of rendered scenes, in processes of its own; it stores its state after every
step, and is killed while it computes, while it validates and while it writes, as chance has it. Bit-equal is claimed
on the CPU: some of a GPU's sums have no fixed order.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import tyro
from safetensors.torch import load_file

from benchmarks.embedded import QUICK, extracted
from stages.train_head.state import STATE_FILE, read_facts

ROOT: Final = Path(__file__).resolve().parents[1]
FILES: Final = ("model.safetensors", "best/model.safetensors")


@dataclass(kw_only=True, slots=True)
class Config:
    """What is killed, and how often."""

    out: Path = Path("runs/benchmarks/resume")
    """Cache and heads."""
    kills: int = 20
    epochs: int = 12
    """Of the training; it has to last for all the kills."""
    seed: int = 0
    """Of the steps at which it is killed."""
    quick: bool = False
    """4 kills in 3 epochs."""

    def __post_init__(self) -> None:
        if self.quick:
            self.kills, self.epochs = 4, 3


def command(config: Config, cache: str, out: Path) -> list[str]:
    recipe = ["--epochs", str(config.epochs), "--batch-size", "2", "--validate-every", "10", "--ema", "0.99"]
    places = ["--cache", cache, "--out", str(out), "--checkpoint-minutes", "0", "--device", "cpu"]
    return [sys.executable, str(ROOT / "run_pipeline.py"), "train-head", *places, *recipe]


def stored_step(out: Path) -> int:
    """Steps of the stored state; 0: there is none."""
    facts = read_facts(out / STATE_FILE)
    return facts["history"]["steps"] if facts else 0


def run_killed(config: Config, cache: str, out: Path, steps: int) -> list[int]:
    """Train, killed again and again; -> the last stored step at each kill."""
    rng = random.Random(config.seed)
    at: list[int] = []
    targets = sorted(rng.sample(range(1, steps), config.kills))
    while not (out / "config.json").exists():
        process = subprocess.Popen(command(config, cache, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = (
            next((target for target in targets if target > stored_step(out)), None) if len(at) < config.kills else None
        )
        while process.poll() is None:
            if wanted is not None and stored_step(out) >= wanted:
                time.sleep(rng.random() * 0.3)  # anywhere in the steps after it
                process.send_signal(signal.SIGKILL)
                process.wait()
                at.append(stored_step(out))
                print(f"kill {len(at)}/{config.kills} at step {at[-1]} of {steps}", flush=True)
            time.sleep(0.005)
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"train-head exited with {process.returncode}: {' '.join(command(config, cache, out))}")
    return at


def main(config: Config) -> dict[str, Any]:
    os.chdir(ROOT)
    config.out.mkdir(parents=True, exist_ok=True)
    cache = extracted(config.out / "cache", *QUICK)
    whole, killed = config.out / "whole", config.out / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(command(config, cache, whole), check=True)
    records = [json.loads((whole / "training.json").read_text())]
    at = run_killed(config, cache, killed, records[0]["steps"])
    records.append(json.loads((killed / "training.json").read_text()))
    scores = [[{k: v for k, v in each.items() if k != "seconds"} for each in r["validations"]] for r in records]
    equal = {}
    for name in FILES:
        a, b = (load_file(folder / name) for folder in (whole, killed))
        equal[name] = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    result: dict[str, Any] = {
        "kills": len(at),
        "killed_at_steps": at,
        "steps": records[0]["steps"],
        "bit_equal": all(equal.values()),
        "files": equal,
        "validations_equal": scores[0] == scores[1],
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "quality_claim": not config.quick,
    }
    for key, value in result.items():
        print(f"{key:>20}  {value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
