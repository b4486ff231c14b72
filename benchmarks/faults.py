"""Can the cache be trusted? Kills, faulty workers, a full disk, two writers, flipped bits, a stale shard.

    python -m benchmarks.faults              100 kills, 1,100 flips: half an hour on 2 cores
    python -m benchmarks.faults --quick      5 kills, 110 flips: 2 minutes

The extraction is the real one (the embedded LMM on generated scenes, in units of a few objects, on a Ray cluster of two
nodes). SIGKILL meets drivers, workers and whole nodes at random moments; in every cache one worker raises, one hangs,
one exceeds an RLIMIT on memory, and in the last cache nobody is killed before the deadline of the unit that hangs. Each
finished cache is compared, file by file, with one that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.fault_campaign import Campaign, schedule
from benchmarks.fault_driver import start
from benchmarks.fault_flips import flip_bits, stale_shard, undetected


@dataclass(kw_only=True, slots=True)
class Config:
    """What is done to the caches."""

    kills: int = 100
    flips: int = 1100
    images: int = 36
    """Of the dataset; about 3 objects each."""
    seed: int = 0
    out: Path = Path("runs/benchmarks/faults")
    """Emptied first."""
    quick: bool = False
    """5 kills and 110 flips of a smaller cache."""

    def __post_init__(self) -> None:
        if self.quick:
            self.kills, self.flips, self.images = 5, 110, 10


def two_writers(campaign: Campaign) -> dict[str, Any]:
    """Two extractions into one cache begin together."""
    cache = campaign.folder / "shared"
    codes = sorted(process.wait() for process in [campaign.start(cache) for _ in range(2)])
    said = campaign.last_error() if 2 in codes else ""
    campaign.compare(cache)
    return {"worked": codes.count(0), "refused": codes.count(2), "said": said}


def full_disk(campaign: Campaign) -> dict[str, Any] | str:
    """An extraction onto a small tmpfs that somebody else fills up meanwhile; room is made, and it goes on."""
    disk = campaign.folder / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (campaign.folder / "whole").rglob("*")) + (4 << 20)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        return "skipped: no right to mount a small file system"
    try:
        driver = campaign.start(disk / "cache")
        while driver.poll() is None and not list((disk / "cache").glob("commits/*.json")):
            time.sleep(0.02)
        free = shutil.disk_usage(disk).free
        (disk / "other").write_bytes(bytes(free - (100 << 10)))  # less than a unit is left
        code = driver.wait()
        said = campaign.last_error()
        (disk / "other").unlink()
        campaign.compare(campaign.run(disk / "cache"))
        return {"exit": code, "said": said}
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def small_cache(folder: Path, name: str, merge: str) -> Path:
    """Two units of a few objects, extracted without Ray."""
    with (folder / "flips.txt").open("a") as log:
        command = ["extract", "--dataset", "scenes-refcoco", "--splits", "val", "--data-root", folder / "scenes"]
        command += ["--cache", folder / name, "--merge", merge, "--device", "cpu", "--local"]
        if code := start(folder / "scratch", log, *command).wait():
            raise SystemExit(f"extract exited with {code}, see {folder / 'flips.txt'}")
    return folder / name


def main(config: Config) -> dict[str, Any]:
    begun = time.monotonic()
    shutil.rmtree(config.out, ignore_errors=True)
    config.out.mkdir(parents=True)
    folder = config.out.resolve()
    rng = random.Random(config.seed)
    print(f"seed {config.seed}", flush=True)
    campaign = Campaign(folder, config.seed, config.images)
    try:
        kills = schedule(config.kills, rng)
        while kills:
            campaign.one_round(kills)
        campaign.one_round([])
        disk = full_disk(campaign)
        writers = two_writers(campaign)
    finally:
        campaign.close()
    cache = small_cache(folder, "small", "mean")
    flips = flip_bits([cache, cache / "images"], config.flips, rng)
    stale = stale_shard(cache, small_cache(folder, "other", "max"))
    wrong = len(campaign.lost) + len(campaign.duplicate) + len(campaign.wrong)
    result = {
        "kills": sum(campaign.counts.values()),
        "lost": len(campaign.lost),
        "duplicate": len(campaign.duplicate),
        "wrong": len(campaign.wrong),
        "byte_identical": wrong == 0,
        "bit_flips": sum(count["flips"] for count in flips.values()),
        "undetected_flips": undetected(flips),
        "kills_by_kind": dict(campaign.counts),
        "caches": campaign.rounds + 3,
        "files": len(campaign.whole),
        "unexpected": campaign.unexpected[:20],
        "faults": campaign.faults(),
        "warnings": campaign.said(),
        "errors": dict(campaign.refusals),
        "full_disk": disk,
        "two_writers": writers,
        "flips": {kind: dict(count) for kind, count in flips.items()},
        "stale_shard": stale,
        "seed": config.seed,
        "seconds": round(time.monotonic() - begun),
        "quality_claim": not config.quick,
    }
    for key, value in result.items():
        print(f"{key:>18}  {value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
