"""Extractions that are killed at random moments until each is complete: what does the cache hold then?"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ray.cluster_utils import Cluster

from benchmarks.fault_driver import began, start
from cache.store import Store
from cache.verify import verify
from manifests.errors import CacheError
from manifests.scenes.write import ScenesConfig, write_scenes

WORKERS: Final = 2
DEADLINE: Final = 20.0  # seconds of a unit; loading the models is part of the first one
AWAY: Final = (1.0, 5.0)  # seconds for which a killed node is missing
PAUSE: Final = {"driver": 15.0, "worker": 6.0, "node": 6.0}  # seconds before such a kill, at most
FAULTS: Final = ("raise", "hang", "memory")
ENDS: Final = (0, 2, -signal.SIGKILL)  # what a driver may exit with
_SAID: Final = {
    "raised": "made up); it is tried again",
    "hung past the deadline": "(nothing done for ",
    "lost with a worker": "its process or its node is gone",
}


class Campaign:
    """A Ray cluster of two nodes beside the head, a dataset, and an undisturbed cache to compare with."""

    def __init__(self, folder: Path, seed: int, images: int) -> None:
        self.folder, self.scratch, self.rng = folder, folder / "scratch", random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.lost, self.duplicate, self.wrong = set[str](), set[str](), set[str]()
        self.unexpected: list[str] = []
        self.rounds = 0
        self.drivers: list[subprocess.Popen[str]] = []
        self.log = (folder / "log.txt").open("w")
        write_scenes(folder / "scenes", ScenesConfig(train=images, val=2, test_a=1, test_b=1, narratives=1, shifted=1))
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node(0))
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # nobody else's
        self.nodes = [self.cluster.add_node(**self._node()) for _ in range(WORKERS)]
        self.back: list[float] = []  # when missing nodes return (time.monotonic)
        self.whole = tree(self.run(folder / "whole"))

    def close(self) -> None:
        for driver in self.drivers:
            driver.kill()
        self.cluster.shutdown()
        self.log.close()

    def start(self, cache: Path) -> subprocess.Popen[str]:
        """An extraction into `cache` begins."""
        driver = start(
            self.scratch, self.log, "extract", "--dataset", "scenes-refcoco", "--splits", "train", "--data-root",
            self.folder / "scenes", "--cache", cache, "--device", "cpu", "--workers", WORKERS, "--ray-address",
            self.cluster.address, "--unit-deadline", DEADLINE / 60,
        )  # fmt: skip
        self.drivers.append(driver)
        return driver

    def run(self, cache: Path, schedule: list[str] | None = None) -> Path:
        """Extract until the cache is complete, while `schedule`'s kills happen; those that were done are taken off."""
        schedule = [] if schedule is None else schedule
        pause = self._pause(schedule)
        for _ in range(200):
            driver = self.start(cache)
            while driver.poll() is None:
                self._bring_back()
                if schedule and time.monotonic() > pause:
                    if self._kill(schedule[0], driver):
                        kind = schedule.pop(0)
                        self.counts[kind] += 1
                        print(f"{time.strftime('%X')} {kind} killed, {len(schedule)} kills are left", flush=True)
                    pause = self._pause(schedule)
                time.sleep(0.02)
            self._look_at(cache, driver.returncode)
            if driver.returncode == 0:
                return cache
        raise SystemExit(f"{cache}: not complete after 200 runs, see {self.log.name}")

    def one_round(self, kills: list[str], faults: Sequence[str] = FAULTS) -> None:
        """A new cache is extracted while `kills` happen (those that did are taken off), compared and deleted.

        faults: of workers, once each; one that hangs is seldom left alone until its deadline while there are kills.
        """
        cache = self.folder / "cache"
        self._prepare_faults(faults)
        self.run(cache, kills)
        self.compare(cache)
        shutil.rmtree(cache)
        self.rounds += 1
        print(f"{self.rounds} caches, {dict(self.counts)}, {self.unexpected or 'all as expected'}", flush=True)

    def compare(self, cache: Path) -> None:
        """Every file against the undisturbed cache's."""
        found = tree(cache)
        self.lost |= self.whole.keys() - found.keys()
        self.duplicate |= found.keys() - self.whole.keys()
        self.wrong |= {name for name in self.whole.keys() & found.keys() if self.whole[name] != found[name]}

    def faults(self) -> dict[str, int]:
        """What workers did on purpose."""
        return dict(Counter((self.scratch / "done").read_text().split()))

    def said(self) -> dict[str, int]:
        """How often the drivers told of faults."""
        text = Path(self.log.name).read_text()
        return {name: text.count(words) for name, words in _SAID.items()}

    def _node(self, cores: int | None = None) -> dict[str, Any]:
        cores = max(1, (os.cpu_count() or 1) // WORKERS) if cores is None else cores
        return {"num_cpus": cores, "object_store_memory": 100 << 20}

    def _pause(self, schedule: list[str]) -> float:
        return time.monotonic() + self.rng.uniform(0, PAUSE[schedule[0]] if schedule else 0)

    def _prepare_faults(self, faults: Sequence[str]) -> None:
        shutil.rmtree(self.scratch / "faults")
        (self.scratch / "faults").mkdir()
        units = sum(name.startswith("commits/") for name in self.whole)
        for unit, fault in zip(self.rng.sample(range(units), len(faults)), faults, strict=True):
            (self.scratch / "faults" / str(unit)).write_text(fault)

    def _kill(self, kind: str, driver: subprocess.Popen[str]) -> bool:
        if kind == "driver":
            driver.kill()
            driver.wait()
            return True
        if kind == "node" and self.nodes:
            node = self.nodes.pop(self.rng.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.back.append(time.monotonic() + self.rng.uniform(*AWAY))
            return True
        return kind == "worker" and self._kill_worker()

    def _kill_worker(self) -> bool:
        alive = []
        for path in sorted((self.scratch / "workers").iterdir()):
            if path.read_text() not in ("", began(int(path.name))):
                path.unlink()
            elif path.read_text():
                alive.append(int(path.name))
        if alive:
            os.kill(self.rng.choice(alive), signal.SIGKILL)
        return bool(alive)

    def _bring_back(self) -> None:
        for then in [then for then in self.back if then < time.monotonic()]:
            self.back.remove(then)
            self.nodes.append(self.cluster.add_node(**self._node()))

    def _look_at(self, cache: Path, code: int) -> None:
        """After a driver's end: its code and its last words, and whether what there is of the cache is sound."""
        if code not in ENDS:
            self.unexpected.append(f"a driver exited with {code}")
        if code == 2:
            self.refusals[re.sub(r"\d+|/\S+", "N", self.last_error())[:100]] += 1
        for root in (cache, cache / "images"):
            try:
                problems = [each.text for each in verify(Store.open(root))] if (root / "cache.json").exists() else []
            except CacheError as error:
                problems = [str(error)]
            self.unexpected += problems

    def last_error(self) -> str:
        said = [
            line[line.index("error: ") :] for line in Path(self.log.name).read_text().splitlines() if "error: " in line
        ]
        return said[-1] if said else "no error"  # the line may have begun as a progress bar


def schedule(kills: int, rng: random.Random) -> list[str]:
    """What is killed, in random order: an eighth of them nodes, a quarter drivers, the rest workers."""
    nodes, drivers = -(-kills // 8), kills // 4
    kinds = ["node"] * nodes + ["driver"] * drivers + ["worker"] * (kills - nodes - drivers)
    rng.shuffle(kinds)
    return kinds


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in there."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
