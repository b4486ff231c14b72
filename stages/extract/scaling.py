"""float16 that keeps what the heads need: attention maps scaled to mean 1, hidden states scaled to RMS 1.

Computed in float64 on the device that holds the values; what leaves it is what is stored. `cache.scaling` is the way
back. Non-finite input gives non-finite output; the worker refuses it and names the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 65504.0  # of float16
_SMALLEST = torch.finfo(torch.float32).tiny


def scale_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [..., h, w], not negative, h·w <= 65504 -> (float16 [..., h, w] of mean 1, mass float32 [...]).

    mass: the map's sum over the image, so that map = scaled · mass / (h·w); a map of zeros stays zero with mass 0.
    With u = 2^-11, every scaled value v is within u·v (v >= 2^-14) or 2^-25 (below) of (h·w)·map/mass, and the L1 error
    of the normalised map is <= 2^-11 + 2^-25 = 4.9e-4 for every mass; mass has a relative error <= 2^-24. Restored,
    every value is within 4.9e-4·value + 2^-24·mass/(h·w) + 1.5e-45.
    A map with a negative value becomes nan: nothing here waits for the device to say so.
    Raises ValueError for a grid whose single peak would not fit into float16.
    """
    cells = maps.shape[-2] * maps.shape[-1]
    if cells > _LARGEST:
        raise ValueError(f"a map of {maps.shape[-2]}×{maps.shape[-1]} cells can not be scaled to mean 1 in float16")
    wide = torch.where(maps < 0, torch.nan, maps.double())
    mass = wide.sum(dim=(-2, -1)).float()
    divisor = torch.where(mass == 0, 1.0, mass.double())[..., None, None]
    return (wide * cells / divisor).half(), mass


def scale_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """States [..., d], |x| <= 1e38 -> (float16 [..., d] of RMS 1, scale float32 [...]); x = scaled · scale.

    A state of zeros stays zero with scale 0. Restored, every x is within 4.9e-4·|x| + 2^-24·scale + 1.5e-45.
    Nothing overflows: |scaled| <= sqrt(d).
    """
    wide = states.double()
    rms = wide.square().mean(-1).sqrt()
    scale = torch.where(rms > 0, rms.clamp(min=_SMALLEST), 0.0).float()
    divisor = torch.where(scale == 0, 1.0, scale.double())[..., None]
    return (wide / divisor).half(), scale
