"""What a worker raises reaches the user as one line: locally as it was, through Ray with the unit's name."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError
from ray.util import ActorPool

from manifests.errors import PipelineError
from pipeline import runtime

OPTIONS = {"workers": 1, "gpus": 0, "threads": 1}


def fake_worker() -> object:
    class Worker:  # here, so that it travels to Ray by value
        def run(self, unit: str) -> dict[str, str]:
            if unit == "unit 3":
                raise KeyError("no such thing")
            return {"unit": unit}

    return Worker()


def test_an_error_of_a_worker_arrives_through_ray_with_its_unit() -> None:
    reports = runtime.run_units(fake_worker, ["unit 1", "unit 2", "unit 3"], local=False, **OPTIONS)
    assert [next(reports)["unit"], next(reports)["unit"]] == ["unit 1", "unit 2"]
    with pytest.raises(PipelineError, match=r"^unit 3: KeyError: .*; --local shows the whole traceback$"):
        next(reports)


def test_rays_own_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        def options(self, **_: object) -> Remote:
            return self

        def remote(self) -> None: ...

    def out_of_memory(*_: object) -> None:
        raise OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node was 15 GB")

    monkeypatch.setattr(runtime, "_start_ray", lambda *_, **__: None)
    monkeypatch.setattr(ray, "remote", lambda _: Remote())
    monkeypatch.setattr(ActorPool, "map_unordered", out_of_memory)
    with pytest.raises(PipelineError, match=r"OutOfMemoryError: Task was killed.*fewer --workers.*--local") as caught:
        list(runtime.run_units(fake_worker, ["unit 1"], local=False, **OPTIONS))
    assert "\n" not in str(caught.value)


def test_a_local_error_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        list(runtime.run_units(fake_worker, ["unit 3"], local=True, **OPTIONS))


@pytest.mark.parametrize("local", [True, False])
def test_a_worker_can_have_several_units_in_flight(local: bool) -> None:
    def together() -> object:
        import threading

        class Worker:  # every unit waits for two others to be there at the same time
            def __init__(self) -> None:
                self.meet = threading.Barrier(3, timeout=60)

            def run(self, unit: int) -> dict[str, int]:
                self.meet.wait()
                return {"unit": unit}

        return Worker()

    reports = runtime.run_units(together, range(6), local=local, in_flight=3, **OPTIONS)
    assert sorted(report["unit"] for report in reports) == list(range(6))


def test_after_an_error_nothing_is_begun_and_what_was_in_flight_is_reported() -> None:
    both = threading.Barrier(2, timeout=60)

    class Worker:
        def run(self, unit: int) -> dict[str, int]:
            if unit < 2:
                both.wait()
            if unit == 0:
                raise PipelineError("unit 0")
            time.sleep(0.2)  # the other one ends later
            return {"unit": unit}

    reports = runtime.run_units(Worker, range(1000), local=True, in_flight=2, **OPTIONS)
    assert next(reports) == {"unit": 1}
    with pytest.raises(PipelineError, match="unit 0"):
        next(reports)


def test_an_interrupt_lets_what_is_in_flight_end_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def interrupted(*args: Any, **options: Any) -> Any:
        waited.append(1)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr(runtime, "wait", interrupted)
    units = ["unit 1", "unit 2", "unit 4", "unit 5"]
    found = []
    with pytest.raises(KeyboardInterrupt):
        for report in runtime.run_units(fake_worker, units, local=True, in_flight=2, **OPTIONS):
            found.append(report["unit"])
    assert sorted(found) == ["unit 1", "unit 2"]
