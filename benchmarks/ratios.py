"""Paired ratios: what took turns in one run is compared repeat by repeat."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median of paired ratios, and the middle half of them."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    quarter = len(found) // 4
    return {
        "median": round(median(found), 3),
        "low": round(found[quarter], 3),
        "high": round(found[-1 - quarter], 3),
        "repeats": len(found),
    }
