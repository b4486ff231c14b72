"""Where work units run: in this process, or in Ray actors, one per GPU or per slot of CPU cores.

A worker is a plain class with `run(unit) -> report`; nothing in it knows of Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import PipelineError


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
) -> Iterator[dict[str, Any]]:
    """Run every unit once, in any order, and yield the reports as they come.

    local: in this process, without Ray.  workers: Ray actors otherwise, each with `gpus` GPUs and `threads` CPU cores.
    in_flight: units that a worker is given at a time, each in a thread of its own; the worker sorts out what runs when.
    An actor that dies is restarted and its units are run again (units are idempotent); an error that a worker raises
    stops the run: a PipelineError is raised here as it was, with Ray any other becomes one that names the unit. What
    was committed before stays.
    """
    if local or not units:
        if units:
            yield from _run_here(make_worker(), units, in_flight)
        return
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    class Actor:
        def __init__(self) -> None:
            self.worker = make_worker()

        def run(self, unit: Any) -> dict[str, Any]:
            try:
                return self.worker.run(unit)
            except PipelineError:
                raise
            except Exception as error:  # named here, for Ray does not say which unit it was
                raise PipelineError(f"{unit}: {_one_line(error)}; --local shows the whole traceback") from error

    _start_ray(address, cores=None if address else max(workers * threads, 1))
    try:
        remote = ray.remote(Actor).options(  # type: ignore[attr-defined]
            num_cpus=threads, num_gpus=gpus, max_concurrency=in_flight, max_restarts=3, max_task_retries=3
        )
        actors = [remote.remote() for _ in range(min(workers, len(units)))]
        pool = ActorPool(actors * in_flight)  # the pool gives an actor one unit for each time that it is listed
        yield from pool.map_unordered(lambda actor, unit: actor.run.remote(unit), list(units))  # type: ignore[arg-type]
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), PipelineError):
            raise cause from None
        raise PipelineError(
            f"Ray gave up ({_one_line(error)}): use fewer --workers if memory ran out, see the workers' logs under "
            "/tmp/ray, or run with --local to see the error; what was committed is kept, run the same command again to "
            "go on"
        ) from None
    finally:
        ray.shutdown()


def _run_here(worker: Worker, units: Sequence[Any], in_flight: int) -> Iterator[dict[str, Any]]:
    if in_flight == 1:
        yield from (worker.run(unit) for unit in units)
        return
    left = iter(units)
    error: BaseException | None = None
    with ThreadPoolExecutor(in_flight, thread_name_prefix="unit") as threads:
        running = {threads.submit(worker.run, unit) for unit in islice(left, in_flight)}
        while running:
            try:
                done, running = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt as interrupt:
                error = interrupt
                continue
            for future in done:
                if error := error or future.exception():
                    continue  # nothing new is begun; what is in flight is committed and reported
                running |= {threads.submit(worker.run, unit) for unit in islice(left, 1)}
            yield from (future.result() for future in done if future.exception() is None)
    if error:
        raise error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].strip()


def _start_ray(address: str | None, cores: int | None) -> None:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    root = str(Path(__file__).resolve().parent.parent)
    ray.init(
        address=address,
        num_cpus=cores,
        include_dashboard=False,
        configure_logging=True,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=None if address else 200 * 2**20,  # units travel as files, not as objects
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
