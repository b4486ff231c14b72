from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cache.scaling import restore_maps, restore_states
from stages.extract import scaling

MAPS = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
              elements=st.floats(0, np.float32(1e30), width=32))  # fmt: skip
STATES = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 9)),
                elements=st.floats(np.float32(-1e38), np.float32(1e38), width=32))  # fmt: skip


def scale_maps(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled, mass = scaling.scale_maps(torch.from_numpy(maps))
    return scaled.numpy(), mass.numpy()


def scale_states(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled, scale = scaling.scale_states(torch.from_numpy(states))
    return scaled.numpy(), scale.numpy()


@given(MAPS)
@settings(max_examples=200)
def test_maps_are_within_the_stated_bounds(maps: np.ndarray) -> None:
    scaled, mass = scale_maps(maps)
    assert (scaled.dtype, mass.dtype) == (np.float16, np.float32)
    exact = maps.astype(np.float64)
    total = exact.sum((-2, -1))
    cells = maps.shape[-1] * maps.shape[-2]
    assert (np.abs(mass - total) <= 2.0**-24 * total).all()
    alive = total > 0
    assert (scaled[~alive] == 0).all() and (mass[~alive] == 0).all()
    normal = exact[alive] / total[alive][:, None, None]
    kept = scaled[alive].astype(np.float64) / cells
    slack = 1 + 2.0**-12  # of the float32 mass
    error = np.abs(kept - normal) * cells
    value = normal * cells
    assert (error <= np.maximum(2.0**-11 * value, 2.0**-25) * slack + 2.0**-24 * value).all()
    assert (np.abs(kept - normal).sum((-2, -1)) <= (2.0**-11 + 2.0**-25) * slack + 2.0**-23).all()
    restored = np.abs(restore_maps(scaled, mass).astype(np.float64) - exact)
    assert (restored <= 4.9e-4 * exact + 2.0**-24 * (total / cells)[:, None, None] + 1.5e-45).all()


@pytest.mark.parametrize("total", [1.0, 1e-3, 1e-4, 1e-5, 1e-30])
def test_a_sink_keeps_its_map(total: float) -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(576, 0.3)).reshape(1, 24, 24)
    maps = (shares * total).astype(np.float32)
    scaled, mass = scale_maps(maps)
    assert mass[0] == pytest.approx(total, rel=1e-5)
    after_the_head = scaled.astype(np.float64) / scaled.astype(np.float64).sum()
    assert np.abs(after_the_head - shares).sum() < 5e-4
    if total <= 1e-5:  # the reason for all this
        raw = maps.astype(np.float16).astype(np.float64)
        assert np.abs(raw / max(raw.sum(), 1e-12) - shares).sum() > 0.3


def test_a_single_peak_fits_and_a_grid_too_large_is_refused() -> None:
    maps = np.zeros((1, 64, 64), np.float32)
    maps[0, 3, 4] = 0.3
    assert scale_maps(maps)[0][0, 3, 4] == 4096
    with pytest.raises(ValueError, match="256×256"):
        scale_maps(np.ones((1, 256, 256), np.float32))
    assert np.isnan(scale_maps(-maps)[0][0]).all()  # attention is never negative; the worker refuses what is not finite


@given(STATES)
@settings(max_examples=200)
def test_states_are_within_the_stated_bounds(states: np.ndarray) -> None:
    scaled, scale = scale_states(states)
    assert (scaled.dtype, scale.dtype) == (np.float16, np.float32)
    exact = states.astype(np.float64)
    restored = restore_states(scaled, scale)
    assert restored.dtype == np.float32
    assert (np.abs(restored - exact) <= 4.9e-4 * np.abs(exact) + 2.0**-24 * scale[:, None] + 1.5e-45).all()
    assert np.isfinite(scaled).all()


def test_states_that_overflow_float16() -> None:
    states = np.random.default_rng(0).normal(size=(2, 3, 512)).astype(np.float32)
    states[..., 7] = 3e5  # a massive activation
    assert np.abs(states).max() > np.finfo(np.float16).max
    restored = restore_states(*scale_states(states))
    np.testing.assert_allclose(restored[..., 7], 3e5, rtol=4.9e-4)
    rms = np.sqrt((states.astype(np.float64) ** 2).mean(-1, keepdims=True))
    assert (np.abs(restored - states) <= 4.9e-4 * np.abs(states) + 2.0**-24 * rms).all()
    assert (scale_states(np.zeros((1, 4), np.float32))[1] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_for_the_writer_to_see(bad: float) -> None:
    states = np.ones((2, 4), np.float32)
    states[1, 2] = bad
    scaled, scale = scale_states(states)
    assert not np.isfinite(scaled[1]).all() and np.isfinite(scaled[0]).all() and np.isfinite(scale[0])
    maps = np.ones((2, 2, 2), np.float32)
    maps[1, 0, 0] = bad
    assert not np.isfinite(scale_maps(maps)[0][1]).all()
