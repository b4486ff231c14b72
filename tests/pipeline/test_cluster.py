"""Real Ray: workers that raise, hang, are killed, whose node goes or comes; every unit is reported once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.utils import reset_ray_address
from ray.cluster_utils import Cluster

from manifests.errors import PipelineError
from pipeline.runtime import run_units

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from pipeline.runtime import run_units

folder = Path(sys.argv[1])

def make():
    class Worker:
        def run(self, unit):
            (folder / f"begun{unit}").touch()
            time.sleep(2)
            return {"unit": unit}
    return Worker()

found = []
try:
    for report in run_units(make, range(100), workers=2, local=False, gpus=0, threads=1, in_flight=2):
        found.append(report["unit"])
except KeyboardInterrupt:
    print("stopped", sorted(found), flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, which stays, and a node with two."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    reset_ray_address()  # what else runs on this machine shall not find it
    cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    yield cluster
    cluster.shutdown()


def make_worker(folder: Path, fault: str = "") -> Any:
    """A factory of workers whose unit 3 does `fault` the first time, and unit 5 always if it ends in "always"."""

    def make() -> object:
        import os
        import threading
        import time

        from manifests.errors import PipelineError

        class Worker:  # here, so that it travels to Ray by value
            def __init__(self) -> None:
                self.busy, self.lock = 0, threading.Lock()

            def run(self, unit: int) -> dict[str, Any]:
                with self.lock:
                    self.busy += 1
                    most = self.busy
                try:
                    if unit == 3:
                        self.fault()
                    time.sleep(0.05)
                    return {"unit": unit, "busy": most, "process": os.getpid()}
                finally:
                    with self.lock:
                        self.busy -= 1

            def fault(self) -> None:
                with (folder / "attempts").open("a") as file:
                    file.write("x")
                if (folder / "attempts").stat().st_size > 1 and not fault.endswith("always"):
                    return
                if fault.startswith("raise"):
                    raise KeyError("no such thing")
                if fault.startswith("refuse"):
                    raise PipelineError("the disk is full")
                if fault.startswith("hang"):
                    time.sleep(600)
                if fault.startswith("die"):
                    os.kill(os.getpid(), 9)

        return Worker()

    return make


def run(cluster: Cluster, make: Any, units: int = 12, workers: int = 2, **options: Any) -> list[dict[str, Any]]:
    options = {"gpus": 0, "threads": 1, "in_flight": 2} | options
    return list(run_units(make, range(units), workers=workers, local=False, address=cluster.address, **options))


@pytest.mark.parametrize("fault", ["raise", "die", "hang"])
def test_a_fault_that_passes(cluster: Cluster, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    reports = run(cluster, make_worker(tmp_path, fault), deadline=4 if fault == "hang" else None, counts=counts)
    assert sorted(report["unit"] for report in reports) == list(range(12))
    assert (tmp_path / "attempts").stat().st_size == 2
    assert counts["restarts"] == 1 and 1 <= counts["retries"] <= 2  # killed by itself, a neighbour may be retried too
    reason = {"raise": "KeyError: 'no such thing'", "die": "its node is gone", "hang": "nothing done for"}[fault]
    assert any(
        record.message.startswith("3 failed in worker") and reason in record.message for record in caplog.records
    )
    assert max(report["busy"] for report in reports) == 2  # in_flight
    assert len({report["process"] for report in reports}) >= 2


@pytest.mark.parametrize(
    ("fault", "says", "attempts"),
    [
        ("raise always", "^3 failed 4 times, the last time with KeyError: 'no such thing'; --local shows the whole", 4),
        ("die always", "^3 failed 4 times, the last time with its process or its node is gone .*fewer --workers", 4),
        ("refuse always", "^the disk is full$", 1),
    ],
)
def test_a_fault_that_stays(cluster: Cluster, tmp_path: Path, fault: str, says: str, attempts: int) -> None:
    with pytest.raises(PipelineError, match=says) as caught:
        run(cluster, make_worker(tmp_path, fault), units=5)
    assert (tmp_path / "attempts").stat().st_size == attempts and "\n" not in str(caught.value)


def test_workers_that_can_not_be_made(cluster: Cluster) -> None:
    def make() -> object:
        raise ImportError("no such module")

    with pytest.raises(PipelineError, match=r"no worker is left .*ImportError: no such module"):
        run(cluster, make)


def test_nodes_that_go_and_come(cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    counts: Counter[str] = Counter()
    options: dict[str, Any] = {"gpus": 0, "threads": 1, "in_flight": 2, "counts": counts, "address": cluster.address}
    before: set[int] = set()
    after: set[int] = set()
    found = []
    third = None
    # four workers, of whom one has no room before another node joins
    for report in run_units(make_worker(tmp_path), range(600), workers=4, local=False, **options):
        found.append(report["unit"])
        (before if third is None else after).add(report["process"])
        if len(found) == 100:
            cluster.remove_node(second, allow_graceful=False)
        if len(found) == 150:
            third = cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    cluster.remove_node(third)
    assert sorted(found) == list(range(600))
    assert counts["restarts"] == 1 and counts["retries"] >= 1
    assert len(before) == 3 and len(after - before) >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_units_end(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, env=environment, start_new_session=True, text=True
    )
    while len(list(tmp_path.glob("begun*"))) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:  # as a terminal does it
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == "stopped [0, 1, 2, 3]\n"
    assert len(list(tmp_path.glob("begun*"))) == 4
