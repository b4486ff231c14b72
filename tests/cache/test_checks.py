from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cache.checks import all_finite


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@given(st.data())
def test_finite_is_what_numpy_says(dtype: str, data: st.DataObject) -> None:
    values = data.draw(arrays(dtype, st.integers(0, 20)))  # inf, nan and both zeros among them
    assert all_finite(values) == np.isfinite(values).all()


def test_every_float16_is_judged_as_numpy_does() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [all_finite(every[i : i + 1]) for i in range(len(every))] == np.isfinite(every).tolist()


def test_whole_numbers_are_finite() -> None:
    assert all_finite(np.array([2**31 - 1, -1], np.int32)) and all_finite(np.array([255], np.uint8))
