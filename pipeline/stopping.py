"""Ctrl-C, and the SIGTERM of a batch system: what is in flight is finished, nothing new is begun."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NEWS: Final = b"\nstopping: the units in flight are finished first; once more stops at once\n"


@dataclass(slots=True)
class Stop:
    """Whether somebody asked to stop."""

    asked: bool = False


_OPEN: Final[list[Stop]] = []


@contextmanager
def stopping() -> Iterator[Stop]:
    """While it is open, the first SIGINT or SIGTERM only sets `asked`; another one raises KeyboardInterrupt at once.

    Outside of the main thread signals are left as they are. One inside another is the same: who asked inside is known
    outside.
    """
    stop = _OPEN[-1] if _OPEN else Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, _NEWS)  # sys.stderr may be in the middle of a line of its own

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    _OPEN.append(stop)
    try:
        yield stop
    finally:
        _OPEN.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
