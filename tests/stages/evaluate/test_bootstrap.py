"""Intervals: they hold the estimate, repeat with a seed, cover the truth, and count images rather than objects."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluate import bootstrap
from stages.evaluate.bootstrap import estimate


def names(count: int) -> np.ndarray:
    return np.array([f"i{k:04}" for k in range(count)])


def test_the_interval_holds_the_estimate_and_repeats() -> None:
    rng = np.random.default_rng(1)
    union = rng.integers(50, 500, 120)
    intersection = rng.integers(0, union)
    images = names(120)
    first = estimate(images, intersection, union, seed=3)
    assert first.low < first.value < first.high
    assert first.value == intersection.sum() / union.sum()
    assert first == estimate(images, intersection, union, seed=3)
    assert first.low != estimate(images, intersection, union, seed=4).low
    order = rng.permutation(120)  # integers: sums do not depend on the order
    assert first == estimate(images[order], intersection[order], union[order], seed=3)


def test_coverage_on_a_known_distribution() -> None:
    """Means of 60 uniform values: about 95 of 100 intervals hold 0.5 (3 standard deviations: 88 to 100)."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        values = rng.random(60)
        found = estimate(names(60), values, np.ones(60), seed=seed, draws=400)
        held += found.low <= 0.5 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(2).random(400)
    found = estimate(names(400), values, np.ones(400))
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_objects_of_one_image_are_drawn_together() -> None:
    """Ten copies of each value in its image say nothing new; ten images with the same values would."""
    values, images = np.random.default_rng(2).random(50), names(50)
    alone = estimate(images, values, np.ones(50))
    copied = estimate(np.repeat(images, 10), np.repeat(values, 10), np.ones(500))
    spread = estimate(names(500), np.repeat(values, 10), np.ones(500))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert spread.high - spread.low < 0.5 * (copied.high - copied.low)


def test_blocks_bound_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(30)
    whole = estimate(names(30), values, np.ones(30))
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    assert estimate(names(30), values, np.ones(30)) == whole


def test_no_interval_from_one_image_and_no_value_from_nothing() -> None:
    one = estimate(np.array(["a", "a"]), np.array([0.2, 0.4]), np.ones(2))
    assert (one.value, one.low, one.high) == (pytest.approx(0.3), None, None)
    assert estimate(names(2), np.zeros(2), np.zeros(2)) is None
    assert estimate(names(0), np.zeros(0), np.zeros(0)) is None
