"""Attention maps in eight bits: the logarithm of every value, over five decades below the map's own maximum.

    code 0           0, and everything below 10^-5 of the maximum
    code k, 1..255   peak · 10^(-5 · (255 - k) / 254)

A linear scale would lose the small values, which are most of a map that a sink dominates: of a map's values 45 % become
0. Here a value that is kept is off by 2.3 % at most (half a step), whatever its size.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

CODES: Final = "attention_log8"  # these two arrays stand for "attention"
PEAK: Final = "attention_peak"
DECADES: Final = 5
_STEPS: Final = 254  # between the codes 1 and 255
_TABLE: Final = np.concatenate([[0.0], 10.0 ** (-DECADES * np.arange(_STEPS, -1, -1) / _STEPS)]).astype(np.float32)
HALF_STEP: Final = 10 ** (DECADES / _STEPS / 2) - 1
"""How far a value may be off, relative to itself."""
ATTRIBUTES: Final[dict[str, dict[str, Any]]] = {
    CODES: {
        "encoding": f"code 0: value 0; code k from 1 to 255: value {PEAK}[slot, channel] * 10 ** "
        f"(-{DECADES} * (255 - k) / {_STEPS})",
        "meaning": "slot (object), channel, row, column: attention; every map has mean 1 after division by its mean",
    },
    PEAK: {"meaning": f"slot (object), channel: the largest value of the map in {CODES}"},
}
"""What the Zarr arrays say of themselves."""


def encode(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [..., h, w], nothing negative -> codes uint8 [..., h, w], peaks float32 [...]."""
    peaks = maps.max((-2, -1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # log of 0, and 0 / 0 in maps of zeros
        levels = np.log10(maps.astype(np.float32) / peaks[..., None, None])
    codes = np.rint(255 + levels * np.float32(_STEPS / DECADES))
    return np.where(codes >= 1, codes, 0).astype(np.uint8), peaks


def decode(codes: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """uint8 [..., h, w], float32 [...] -> float16 maps of mean 1 again (heads divide by the sum); zeros stay zeros."""
    maps = np.take(_TABLE, codes) * peaks[..., None, None]
    means = maps.mean((-2, -1), dtype=np.float64, keepdims=True)
    return (maps / np.where(means > 0, means, 1)).astype(np.float16)
