"""What has been read once, kept in RAM up to a budget."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any


class Memory:
    """Keeps values until the budget is full, then takes no more; nothing is thrown out.

    Epochs visit every sample once, in another order each time: there, dropping the least recently used value drops the
    ones needed next, while keeping the first ones always saves budget / total of the reads.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._values: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, (self.budget,)  # another process starts empty: sending gigabytes would cost more than reading

    def get(self, key: Hashable) -> Any | None:
        return self._values.get(key)

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep `value`, of `size` bytes, if there is room."""
        with self._lock:
            if key not in self._values and self.used + size <= self.budget:
                self._values[key] = value
                self.used += size
