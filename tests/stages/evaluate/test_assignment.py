"""The best pairing against all pairings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.evaluate.assignment import best_pairs

_SHAPE = st.tuples(st.integers(0, 5), st.integers(0, 5))
_WEIGHT = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-3, 3, allow_subnormal=False))


@settings(max_examples=300, deadline=None)
@given(_SHAPE.flatmap(lambda shape: arrays(np.float64, shape, elements=_WEIGHT)))
def test_no_pairing_has_a_larger_total(weights: np.ndarray) -> None:
    wide = weights if weights.shape[0] <= weights.shape[1] else weights.T
    rows, columns = map(int, wide.shape)
    best = max(sum(wide[row, column] for row, column in enumerate(p)) for p in permutations(range(columns), rows))
    pairs = best_pairs(weights)
    assert len(pairs) == rows == len({row for row, _ in pairs}) == len({column for _, column in pairs})
    assert pairs == sorted(pairs)
    assert sum(weights[pair] for pair in pairs) == pytest.approx(best)


def test_hundreds_of_phrases() -> None:
    weights = np.random.default_rng(0).random((150, 200))
    pairs = best_pairs(weights)
    assert len(pairs) == 150 and sum(weights[pair] for pair in pairs) > sum(weights.diagonal())
    np.testing.assert_array_equal(np.argmax(np.eye(50)[::-1], axis=1), [c for _, c in best_pairs(np.eye(50)[::-1])])
