"""Where the time of a unit goes: seconds of the host, and of the device without making the host wait for it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by the name of a part.

    device: a GPU measures the parts of `device` by events in its stream, from the start of the first to the end of the
    last thing that is launched; None and the CPU by the host's clock.
    """

    def __init__(self, device: str | None):
        self._gpu = device if device != "cpu" else None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time on the host."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - start

    @contextmanager
    def device(self, part: str) -> Iterator[None]:
        """Time on the device: what is launched inside the block."""
        if self._gpu is None:
            with self(part):
                yield
            return
        with torch.cuda.device(self._gpu):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
        self._events.append((part, begin, end))

    def seconds(self) -> dict[str, float]:
        """Seconds by part; what runs on the device must have ended."""
        found = defaultdict(float, self._seconds)
        for part, begin, end in self._events:
            found[part] += begin.elapsed_time(end) / 1000
        return dict(found)
