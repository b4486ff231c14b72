"""One extraction of the fault campaign (`benchmarks.faults`), in a process of its own: small units, faulty workers.

Workers are found, to be killed, by SCRATCH/workers/PID, which holds the time when the process began. A worker that
comes to unit N of the priors takes the file SCRATCH/faults/N, if it is there, and does what it says: "raise", "hang" or
"memory". What was done is written to SCRATCH/done.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from pipeline.cli import main as run_pipeline
from stages.extract import plan, worker
from stages.extract.work import WorkerConfig, WorkUnit
from stages.extract.worker import ExtractionWorker

UNIT: Final = 4  # objects or images: many units, so that there is much to interrupt
ROOT: Final = Path(__file__).resolve().parent.parent
_START: Final = "import sys; from benchmarks.fault_driver import main; sys.exit(main(sys.argv[1:]))"


class FaultyWorker(ExtractionWorker):
    """A worker that is told what goes wrong."""

    def __init__(self, scratch: Path, config: WorkerConfig):
        super().__init__(config)
        self.scratch = scratch
        (scratch / "workers" / str(os.getpid())).write_text(began(os.getpid()))

    def run(self, unit: WorkUnit) -> dict[str, Any]:
        fault = self._take(unit) if unit.kind == "priors" else None
        if fault == "raise":
            raise RuntimeError("CUDA error: this one is made up")
        if fault == "hang":
            time.sleep(24 * 3600)
        if fault == "memory":
            vars(self.kinds[unit.kind])["compute"] = self._compute_too_much
        return super().run(unit)

    def _take(self, unit: WorkUnit) -> str | None:
        path = self.scratch / "faults" / str(unit.number)
        try:
            fault = path.read_text()
            path.unlink()
        except FileNotFoundError:
            return None
        with (self.scratch / "done").open("a") as file:
            file.write(f"{fault}\n")
        return fault

    def _compute_too_much(self, *_: Any) -> Any:
        del vars(self.kinds["priors"])["compute"]  # only once
        with _little_memory(64 << 20):
            return bytearray(1 << 30)


@contextmanager
def _little_memory(more: int) -> Iterator[None]:
    """RLIMIT_AS of this process, `more` bytes above what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def began(process: int) -> str:
    """When a process began, in the kernel's ticks; "" if it is no more. Numbers of processes are used again."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def start(scratch: Path, log: IO[str], *command: Any) -> subprocess.Popen[str]:
    """`run_pipeline.py COMMAND` with small units and faulty workers."""
    for folder in ("workers", "faults"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", _START, str(scratch), *map(str, command)]
    return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, text=True)


def main(argv: Sequence[str]) -> int:
    vars(plan)["LARGEST_UNIT"] = UNIT
    vars(worker)["ExtractionWorker"] = partial(FaultyWorker, Path(argv[0]))
    return run_pipeline(argv[1:])
