"""How the cache's float16 values become numbers again: maps are kept with mean 1, hidden states with RMS 1.

Raw float16 attention of a sink head (image mass 1e-5) is 70 % wrong after the head's normalisation, and raw hidden
states of some LMMs exceed 65504. Scaled, both errors are bounded by float16's own rounding, whatever the magnitude:
`stages.extract.stored` scales, on the LMM's device, and states the bounds.
"""

from __future__ import annotations

import numpy as np


def restore_maps(scaled: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """float16 [..., h, w] and float32 [...] -> float32 maps: scaled · mass / (h·w)."""
    cells = scaled.shape[-2] * scaled.shape[-1]
    return (scaled.astype(np.float64) * (mass.astype(np.float64) / cells)[..., None, None]).astype(np.float32)


def restore_states(scaled: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float16 [..., d] and float32 [...] -> float32 states: scaled · scale."""
    return scaled.astype(np.float32) * scale[..., None]
