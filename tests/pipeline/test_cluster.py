"""Real Ray: workers that raise, hang, are killed, whose node goes or comes; every unit is reported once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
options = {"workers": 2, "local": False, "gpus": 0, "threads": 1, "in_flight": 2, "address": sys.argv[2] or None}
try:
    for report in run_units(make, range(100), **options):
        found.append(report["unit"])
except KeyboardInterrupt:
    print("stopped", sorted(found), flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, which stays, and a node with two."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # what else runs on this machine shall not find it
    cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    yield cluster
    cluster.shutdown()


def make_worker(
    folder: Path, faults: dict[int, str] | None = None, once: bool = True, crowd: dict[int, int] | None = None
) -> Any:
    """A factory of workers whose units do what `faults` says: the first time, or always.

    crowd: units that wait until so many processes have been there.
    """

    def make() -> object:
        import os
        import threading
        import time

        from manifests.errors import PipelineError

        class Worker:  # here, so that it travels to Ray by value
            def __init__(self) -> None:
                self.busy, self.lock = 0, threading.Lock()
                (folder / f"process{os.getpid()}").touch()

            def run(self, unit: int) -> dict[str, Any]:
                with self.lock:
                    self.busy += 1
                    most = self.busy
                try:
                    self.fault((faults or {}).get(unit, ""), folder / f"attempts{unit}")
                    while len(list(folder.glob("process*"))) < (crowd or {}).get(unit, 0):
                        time.sleep(0.05)
                    time.sleep(0.05)
                    return {"unit": unit, "busy": most, "process": os.getpid()}
                finally:
                    with self.lock:
                        self.busy -= 1

            def fault(self, fault: str, attempts: Path) -> None:
                with attempts.open("a") as file:
                    file.write("x")
                if once and attempts.stat().st_size > 1:
                    return
                if fault == "raise":
                    raise KeyError("no such thing")
                if fault == "refuse":
                    raise PipelineError("the disk is full")
                if fault == "hang":
                    time.sleep(600)
                if fault == "die":
                    os.kill(os.getpid(), 9)

        return Worker()

    return make


def run(cluster: Cluster, make: Any, units: int = 12, workers: int = 2, **options: Any) -> list[dict[str, Any]]:
    options = {"gpus": 0, "threads": 1, "in_flight": 2} | options
    return list(run_units(make, range(units), workers=workers, local=False, address=cluster.address, **options))


def test_faults_that_pass(cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    make = make_worker(tmp_path, {3: "raise", 21: "die", 37: "hang"})
    reports = run(cluster, make, units=40, deadline=4, counts=counts)
    assert sorted(report["unit"] for report in reports) == list(range(40))
    assert [(tmp_path / f"attempts{unit}").stat().st_size for unit in (3, 21, 37)] == [2, 2, 2]
    assert (
        counts["restarts"] == 3 and 3 <= counts["retries"] <= 4
    )  # a neighbour of the one that died may be retried too
    for said in (
        "3 failed in worker . .KeyError: 'no such thing'.; it is tried again",
        "21 failed in worker . .its process or its node is gone ",
        "37 failed in worker . .nothing done for 0.0667 minutes",
    ):
        assert any(re.match(said, record.message) for record in caplog.records), said
    assert max(report["busy"] for report in reports) == 2  # in_flight


@pytest.mark.parametrize(
    ("fault", "says", "attempts"),
    [
        ("raise", "^3 failed 2 times, the last time with KeyError: 'no such thing'; --local shows the whole", 2),
        ("die", r"^\d failed 2 times, the last time with its process or its node is gone .*fewer --workers", 2),
        ("refuse", "^the disk is full$", 1),
    ],
)
def test_a_fault_that_stays(
    cluster: Cluster, tmp_path: Path, fault: str, says: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.ATTEMPTS", 2)
    with pytest.raises(PipelineError, match=says) as caught:
        run(cluster, make_worker(tmp_path, {3: fault}, once=False), units=5)
    tried = (tmp_path / "attempts3").stat().st_size  # a neighbour that died with it may be the first to reach the bound
    assert tried == attempts or (fault == "die" and 0 < tried <= attempts)
    assert "\n" not in str(caught.value)


def test_workers_that_can_not_be_made(cluster: Cluster) -> None:
    def make() -> object:
        raise ImportError("no such module")

    with pytest.raises(PipelineError, match=r"no worker is left .*ImportError: no such module"):
        run(cluster, make)


def test_nodes_that_go_and_come(cluster: Cluster, tmp_path: Path) -> None:
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    second = cluster.add_node(**node)
    counts: Counter[str] = Counter()
    # four workers, of whom one has no room before a node with room for two joins; one node goes with its worker
    crowd = dict.fromkeys(range(20), 3) | dict.fromkeys(range(30, 40), 5)
    found = []
    options: dict[str, Any] = {"gpus": 0, "threads": 1, "in_flight": 2, "counts": counts, "address": cluster.address}
    for report in run_units(make_worker(tmp_path, crowd=crowd), range(60), workers=4, local=False, **options):
        found.append(report["unit"])
        if len(found) == 10:
            cluster.remove_node(second, allow_graceful=False)
            third = cluster.add_node(**node | {"num_cpus": 2})
    cluster.remove_node(third)
    assert sorted(found) == list(range(60))
    assert counts["restarts"] == 1 and counts["retries"] <= 2
    assert len(list(tmp_path.glob("process*"))) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_units_end(cluster: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT goes to the whole group, as a terminal sends it, with Ray's own processes in it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path, "" if number == signal.SIGINT else cluster.address],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        text=True,
    )
    while len(list(tmp_path.glob("begun*"))) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == "stopped [0, 1, 2, 3]\n"
    assert len(list(tmp_path.glob("begun*"))) == 4
