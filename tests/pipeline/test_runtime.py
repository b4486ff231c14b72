"""Where units run: errors, several in flight, and stopping, in this process. With Ray: test_cluster.py."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from manifests.errors import PipelineError
from pipeline import runtime

OPTIONS = {"workers": 1, "gpus": 0, "threads": 1, "local": True}


class Together:
    """Every unit waits until three are there at the same time."""

    def __init__(self) -> None:
        self.meet = threading.Barrier(3, timeout=60)

    def run(self, unit: int) -> dict[str, int]:
        self.meet.wait()
        return {"unit": unit}


def test_a_local_error_keeps_its_traceback() -> None:
    class Worker:
        def run(self, unit: int) -> dict[str, int]:
            raise KeyError("no such thing")

    with pytest.raises(KeyError):
        list(runtime.run_units(Worker, [0], **OPTIONS))


def test_a_worker_can_have_several_units_in_flight() -> None:
    reports = runtime.run_units(Together, range(6), in_flight=3, **OPTIONS)
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

    reports = runtime.run_units(Worker, range(1000), in_flight=2, **OPTIONS)
    assert next(reports) == {"unit": 1}
    with pytest.raises(PipelineError, match="unit 0"):
        next(reports)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_what_is_in_flight_is_finished_and_reported(
    number: signal.Signals, in_flight: int, capfd: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    class Worker(Together):
        def run(self, unit: int) -> dict[str, int]:
            begun.append(unit)
            if in_flight > 1:
                self.meet.wait()
            if unit == 0:
                os.kill(os.getpid(), number)
            time.sleep(0.1)
            return {"unit": unit}

    found = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        for report in runtime.run_units(Worker, range(9), in_flight=in_flight, **OPTIONS):
            found.append(report["unit"])
    assert sorted(found) == sorted(begun) == list(range(in_flight))
    assert "the units in flight are finished first" in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_unit_changes_nothing() -> None:
    class Worker:
        def run(self, unit: int) -> dict[str, int]:
            if unit == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"unit": unit}

    assert len(list(runtime.run_units(Worker, range(2), **OPTIONS))) == 2


def test_the_second_signal_stops_at_once() -> None:
    class Worker:
        def run(self, unit: int) -> dict[str, int]:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
            return {"unit": unit}

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(runtime.run_units(Worker, range(2), **OPTIONS))
    assert time.monotonic() - start < 30
