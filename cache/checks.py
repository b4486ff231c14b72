"""What a unit must be before it may reach the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.layout import ArraySpec
from manifests.errors import CacheError


def check_names(given: set[str], planned: set[str]) -> None:
    """CacheError unless a unit brings exactly the arrays of the cache."""
    if given != planned:
        raise CacheError(
            f"a unit needs the arrays {', '.join(sorted(planned))}; missing: "
            f"{', '.join(sorted(planned - given)) or 'none'}; unknown: {', '.join(sorted(given - planned)) or 'none'}"
        )


def all_finite(values: np.ndarray) -> bool:
    """Is there neither inf nor nan? As `np.isfinite(values).all()`, six times as fast: compares bits as integers.

    inf has the largest exponent, nan too; every finite number lies below it, with either sign.
    """
    if values.dtype.kind != "f" or not values.size:
        return True
    bits, infinity = values.dtype.itemsize, np.array(np.inf, values.dtype)
    signed, unsigned = values.view(f"i{bits}"), values.view(f"u{bits}")
    return bool(signed.max() < infinity.view(f"i{bits}") and unsigned.max() < (-infinity).view(f"u{bits}"))


def check_shape(spec: ArraySpec, unit: int, values: np.ndarray) -> None:
    """CacheError unless `values` is the whole unit of array `spec`, in its dtype."""
    if values.shape != spec.unit_shape or values.dtype != np.dtype(spec.dtype):
        raise CacheError(
            f"array {spec.name}, unit {unit}: expected {spec.dtype} {list(spec.unit_shape)}, "
            f"got {values.dtype} {list(values.shape)}"
        )


def check_finite(spec: ArraySpec, unit: int, values: np.ndarray) -> None:
    """CacheError, naming the slot, for inf and nan in a unit of array `spec`."""
    for slot in range(spec.slots_per_unit):  # slot by slot: no second array as large as the unit
        if not all_finite(values[slot]):
            found = np.asarray(values[slot])
            raise CacheError(
                f"array {spec.name}, unit {unit}: slot {unit * spec.slots_per_unit + slot} (number {slot} of the unit) "
                f"holds {int((~np.isfinite(found)).sum())} values that are not finite (inf or nan); "
                "record the sample as failed and fill its slots with zeros"
            )


def check_failures(failures: Sequence[Any], subject: str) -> None:
    """CacheError unless every failure is {subject: row number, "reason": text, ...}."""
    for failure in failures:
        row, reason = (failure.get(subject), failure.get("reason")) if isinstance(failure, dict) else (None, None)
        if type(row) is not int or row < 0 or not isinstance(reason, str) or not reason:
            raise CacheError(f"a failure must be {{{subject!r}: row, 'reason': text}}, got {failure!r}")
