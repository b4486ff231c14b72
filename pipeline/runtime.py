"""Where work units run: in this process, or in Ray actors, one per GPU or per slot of CPU cores.

A worker is a plain class with `run(unit) -> report`; nothing in it knows of Ray.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pipeline.stopping import Stop, stopping


class Worker(Protocol):
    """Does one unit of work and says what it did."""

    def run(self, unit: Any) -> dict[str, Any]: ...


def run_units(
    make_worker: Callable[[], Worker],
    units: Sequence[Any],
    *,
    workers: int,
    local: bool,
    gpus: int,
    threads: int,
    in_flight: int = 1,
    address: str | None = None,
    deadline: float | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run every unit once, in any order, and yield the reports as they come.

    local: in this process, without Ray.  workers: Ray actors otherwise, each with `gpus` GPUs and `threads` CPU cores;
    those that the cluster has no room for join when it grows.
    in_flight: units that a worker is given at a time, each in a thread of its own; the worker sorts out what runs when.
    deadline: seconds; a worker that is busy for so long without ending a unit is killed (never if `local`).
    counts: is given "restarts" of workers and "retries" of units.

    With Ray, units of a worker that died, was killed or raised are run again, elsewhere if possible (units are
    idempotent), a few times each; then a PipelineError names the unit. A PipelineError of a worker is raised as it was;
    if `local`, so is any other. Before an error is raised, and after the first Ctrl-C or SIGTERM (KeyboardInterrupt),
    what is in flight is finished and reported.
    """
    if not units:
        return
    if local:
        with stopping() as stop:
            yield from _run_here(make_worker(), units, in_flight, stop)
        return
    import ray

    from pipeline.cluster import Crew

    counts = Counter() if counts is None else counts
    start_ray(address, cores=None if address else max(workers * threads, 1))
    try:
        with stopping() as stop:  # after ray.init, which has a handler of its own
            yield from Crew(
                make_worker, units, workers=workers, in_flight=in_flight, deadline=deadline, counts=counts,
                num_cpus=threads, num_gpus=gpus,
            ).run(stop)  # fmt: skip
    finally:
        ray.shutdown()


def _run_here(worker: Worker, units: Sequence[Any], in_flight: int, stop: Stop) -> Iterator[dict[str, Any]]:
    left = iter(units)
    if in_flight == 1:
        for unit in left:
            yield worker.run(unit)
            if stop.asked:
                break
    else:
        yield from _run_in_threads(worker, left, in_flight, stop)
    if stop.asked and next(left, None) is not None:
        raise KeyboardInterrupt


def _run_in_threads(worker: Worker, left: Iterator[Any], in_flight: int, stop: Stop) -> Iterator[dict[str, Any]]:
    error: BaseException | None = None
    with ThreadPoolExecutor(in_flight, thread_name_prefix="unit") as threads:
        running = {threads.submit(worker.run, unit) for unit in islice(left, in_flight)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if (error := error or future.exception()) or stop.asked:
                    continue  # nothing new is begun; what is in flight is committed and reported
                running |= {threads.submit(worker.run, unit) for unit in islice(left, 1)}
            yield from (future.result() for future in done if future.exception() is None)
    if error:
        raise error


def start_ray(address: str | None, cores: int | None) -> None:
    """Join the cluster at `address`, or start one of this process's own with so many cores; quietly."""
    import ray

    # on another node the code is where it is here: a shared file system, or the same path
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    root = str(Path(__file__).resolve().parent.parent)
    ray.init(
        address=address or "local",  # one of its own, whatever else runs on this machine
        num_cpus=cores,
        include_dashboard=False,
        configure_logging=True,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=None if address else 200 * 2**20,  # units travel as files, not as objects
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(":")}},
    )
