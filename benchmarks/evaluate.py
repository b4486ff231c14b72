"""What does an evaluation take, and does it repeat? All protocols on the embedded default, in one command, twice.

    python -m benchmarks.evaluate            on runs/cache and runs/head (`make demo`), a few minutes on 2 cores
    python -m benchmarks.evaluate --quick    small ones of its own, a minute or two, claims nothing

`run_pipeline.py evaluate` itself, in fresh processes. Repeated is: metrics.json, the table, the page and the table of
objects, byte for byte. Peak memory is told for all held-out samples and for a part of them: it must not follow their
number.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import tyro

from benchmarks.embedded import QUICK, extracted
from pipeline.cli import main as run_pipeline

ROOT: Final = Path(__file__).resolve().parents[1]
FILES: Final = ("metrics.json", "results.md", "report.html", "objects.parquet", "sheet.png")
PART: Final = "testB"


@dataclass(kw_only=True, slots=True)
class Config:
    """What is evaluated, how often."""

    cache: Path = Path("runs/cache")
    """The embedded default's cache; made if it is missing."""
    head: Path = Path("runs/head")
    """A head that was trained on it; trained, with the demo's recipe, if it is missing."""
    out: Path = Path("runs/benchmarks/evaluate")
    repeats: int = 2
    """Two or more."""
    captions: bool = True
    """METEOR and CIDEr too, which need Java."""
    quick: bool = False
    """A cache of a few scenes and a head of one epoch."""

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise SystemExit(f"--repeats {self.repeats}: one run can not repeat itself, give 2 or more")


def prepared(config: Config) -> tuple[str, str]:
    """The cache and the head, made where they are missing; SystemExit if that fails."""
    home = config.out / "quick"
    cache = extracted(
        home / "cache" if config.quick else config.cache, *(QUICK if config.quick else ()), "--dataset", "scenes"
    )
    head = home / "head" if config.quick else config.head
    if not (head / "config.json").is_file():
        options = ["--epochs", "1"] if config.quick else []
        if code := run_pipeline(["train-head", "--cache", cache, "--out", str(head), *options]):
            raise SystemExit(code)
    return cache, str(head)


def evaluated(config: Config, cache: str, head: str, out: Path, *more: str) -> tuple[dict[str, Any], float]:
    """The last line of `evaluate` in a process of its own, and its peak memory in GiB; SystemExit if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "evaluate", "--cache", cache, "--head", head]
    # one worker: that of another process would not be measured
    command += ["--out", str(out), "--workers", "1", "--captions" if config.captions else "--no-captions", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(lines[-1]), usage.ru_maxrss / 2**20


def digests(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES if (out / name).is_file()}


def main(config: Config) -> dict[str, Any]:
    cache, head = prepared(config)
    runs = []
    for _ in range(config.repeats):
        said, peak = evaluated(config, cache, head, config.out / "all")
        runs.append((said, peak, digests(config.out / "all")))
    part, part_peak = evaluated(config, cache, head, config.out / "part", "--splits", PART)
    metrics = json.loads((config.out / "all" / "metrics.json").read_text())
    measured = [row for row in metrics["results"] if row["value"] is not None]
    absent = {f"{row['protocol']} {row['metric']}": row["absent"] for row in metrics["results"] if row.get("absent")}
    result = {
        "s_per_1000_objects": median(said["s_per_1000_objects"] for said, _, _ in runs),
        "peak_gib": round(max(peak for _, peak, _ in runs), 3),
        "peak_gib_part": round(part_peak, 3),
        "objects": runs[0][0]["objects"],
        "objects_part": part["objects"],
        "repeat_equal": all(found == runs[0][2] for _, _, found in runs),
        "repeats": config.repeats,
        "protocols": sorted({row["protocol"] for row in measured}),
        "absent": absent,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "quality_claim": not config.quick,
    }
    print((config.out / "all" / "results.md").read_text())
    for name in ("protocols", "s_per_1000_objects", "repeat_equal", "peak_gib", "peak_gib_part"):
        print(f"{name:>20}  {result[name]}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
