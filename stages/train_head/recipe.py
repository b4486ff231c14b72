"""How a head is trained: the recipe's numbers, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bf16"]


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The recipe; the defaults are the paper's."""

    epochs: int = 8
    """Passes over the training samples."""
    batch_size: int = 8
    """Samples (images) of a step, for each worker."""
    accumulate: int = 1
    """Batches of a step, for each worker: the gradient of all of them, in the memory of one."""
    lr: float = 1e-4
    """Peak learning rate of AdamW (betas 0.9, 0.999): linear warm-up, then cosine to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    warmup: float = 0.03
    """Share of the steps that warm up."""
    precision: Precision = "float32"
    """bf16: the head's layers in mixed precision (autocast); weights, losses and geometry stay float32."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is then validated and kept in their place, as 0.999; 0: none."""
    seed: int = 0
    """Of the head's weights and of the order of the samples."""
    validate: int = 150
    """Samples of the split `val` that are scored before the first step and after every epoch; 0: none."""
    validate_every: int = 0
    """Steps after which they are scored too; 0: only at the end of epochs."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:  # also for nan
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"precision must be float32 or bf16, not {self.precision}")
        for name in ("validate", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


RECIPES = {"paper": TrainConfig(), "demo": TrainConfig(epochs=4, lr=1.5e-3)}


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, cosine to 0."""
    start = max(1, round(warmup * steps))
    if step < start:
        return (step + 1) / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))
