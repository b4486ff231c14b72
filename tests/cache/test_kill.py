"""Killed at any moment, the same command run again gives the same cache, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cache.store import Store
from tests.cache.caches import PLANNED_FAILURES, UNITS, fill, made, make, record, root_of, texts, tree, values

STEPS = ("link", "replace", "fsync", "mkdir", "unlink", "rmdir", "open", "writev")
SCRIPT = """
import sys
from pathlib import Path
from tests.cache.caches import make, values, record
print("ready", flush=True)
store = make(Path(sys.argv[1]))
for unit in store.missing_units():
    store.write_unit(unit, values(unit), record(unit))
store.finish([{"sample": 9, "reason": "no pixels"}])
"""


_counting = threading.Lock()


def dies_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a copy of this process that gets SIGKILL just before its step-th call to the file system."""
    child = os.fork()
    if child == 0:
        try:
            left = [step]
            for name in STEPS:
                setattr(os, name, _counted(getattr(os, name), left))
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _counted(function: Callable, left: list[int]) -> Callable:
    def call(*arguments: object, **options: object) -> object:
        with _counting:  # a unit's shards are written by several threads
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return function(*arguments, **options)

    return call


def finished(root: Path, units: int = UNITS) -> None:
    store = make(root, units=units)
    fill(store)
    store.finish(PLANNED_FAILURES)


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of caches, each with dozens of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("begin", ["nothing", "another cache"])
def test_killed_before_every_single_step(quick_path: Path, begin: str) -> None:
    finished(quick_path / "whole", units=2)
    expected = tree(quick_path / "whole")
    work: Callable[[Path], object] = partial(finished, units=2)
    if begin == "another cache":
        work = partial(make, units=2, overwrite=True)
    kills, step = 0, 0
    while True:
        root = quick_path / f"cache{step}"
        if begin == "another cache":
            make(root, identity={"lmm": "other"}, units=2).write_unit(0, values(0), record(0))
        if not dies_at(step, partial(work, root)):
            break
        kills += 1
        if begin == "another cache" and (root / "cache.json").exists():
            make(root, units=2, overwrite=True)
        finished(root, units=2)
        assert tree(root) == expected, f"killed at step {step}"
        step += 1
    assert kills > 30


def test_killed_at_random_moments(tmp_path: Path) -> None:
    expected = tree(root_of(made(tmp_path / "whole")))
    root = tmp_path / "cache"
    rng = random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        process.wait()
        if (root / "cache.json").exists():
            assert texts(Store.open(root)) == []
    finished(root)
    assert tree(root) == expected


def test_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    store = make(tmp_path / "cache")
    (root_of(store) / "tmp" / "0123abcd").write_bytes(b"half a shard")
    make(tmp_path / "cache")
    assert list((root_of(store) / "tmp").iterdir()) == []
