"""float16 that keeps what the heads need: attention maps scaled to mean 1, hidden states scaled to RMS 1.

Raw float16 attention of a sink head (image mass 1e-5) is 70 % wrong after the head's normalisation, and raw hidden
states of some LMMs exceed 65504. Scaled, both errors are bounded by float16's own rounding, whatever the magnitude.
Non-finite input gives non-finite output; the cache's writer refuses it and names the slot.
"""

from __future__ import annotations

import numpy as np

_LARGEST = 65504.0  # of float16
_SMALLEST = np.finfo(np.float32).tiny


def scale_maps(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 [..., h, w], not negative, h·w <= 65504 -> (float16 [..., h, w] of mean 1, mass float32 [...]).

    mass: the map's sum over the image, so that map = scaled · mass / (h·w); a map of zeros stays zero with mass 0.
    With u = 2^-11, every scaled value v is within u·v (v >= 2^-14) or 2^-25 (below) of (h·w)·map/mass, and the L1 error
    of the normalised map is <= 2^-11 + 2^-25 = 4.9e-4 for every mass; mass has a relative error <= 2^-24.
    Raises ValueError for negative values and for a grid whose single peak would not fit into float16.
    """
    cells = maps.shape[-2] * maps.shape[-1]
    if cells > _LARGEST:
        raise ValueError(f"a map of {maps.shape[-2]}×{maps.shape[-1]} cells can not be scaled to mean 1 in float16")
    if (maps < 0).any():
        raise ValueError("attention maps must not be negative")
    wide = maps.astype(np.float64)
    mass = wide.sum(axis=(-2, -1)).astype(np.float32)
    divisor = np.where(mass == 0, 1.0, mass.astype(np.float64))[..., None, None]
    with np.errstate(invalid="ignore"):  # inf / inf: the writer reports it
        return (wide * cells / divisor).astype(np.float16), mass


def restore_maps(scaled: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The inverse of `scale_maps`: float32 [..., h, w], each within 4.9e-4·value + 2^-24·mass/(h·w) + 1.5e-45 of it."""
    cells = scaled.shape[-2] * scaled.shape[-1]
    return (scaled.astype(np.float64) * (mass.astype(np.float64) / cells)[..., None, None]).astype(np.float32)


def scale_states(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States float32 [..., d], |x| <= 1e38 -> (float16 [..., d] of RMS 1, scale float32 [...]); x = scaled · scale.

    A state of zeros stays zero with scale 0. `restore_states` gives every x back within
    4.9e-4·|x| + 2^-24·scale + 1.5e-45. Nothing overflows: |scaled| <= sqrt(d).
    """
    wide = states.astype(np.float64)
    rms = np.sqrt(np.mean(wide * wide, axis=-1))
    scale = np.where(rms > 0, np.maximum(rms, _SMALLEST), 0.0).astype(np.float32)
    divisor = np.where(scale == 0, 1.0, scale.astype(np.float64))[..., None]
    with np.errstate(invalid="ignore"):
        return (wide / divisor).astype(np.float16), scale


def restore_states(scaled: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float16 [..., d] and float32 [...] -> float32 [..., d]. Error bounds: see `scale_states`."""
    return scaled.astype(np.float32) * scale[..., None]
