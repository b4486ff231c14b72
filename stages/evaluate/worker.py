"""The worker of an evaluation: a head on some samples of a cache. A plain class; Ray wraps it (`pipeline.runtime`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from cache.priors import Priors
from stages.evaluate.scoring import run_head
from stages.train_head.heads import head_class
from stages.train_head.heads.checkpoint import load_head

BATCHES: Final = 16  # of a unit: enough that reading ahead pays, few enough for several workers and a live bar

MEMORY: Final = 256 << 20  # bytes: nothing is read twice, but for an image that neighbours share


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkUnit:
    """Samples that are evaluated one batch after the other, whoever does it."""

    number: int
    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"unit {self.number} of the evaluation"


def units_of(indices: Sequence[int], batch_size: int) -> list[WorkUnit]:
    """The samples in order; what a unit holds does not depend on the workers, nor do the numbers."""
    size = BATCHES * batch_size
    return [
        WorkUnit(number=number, indices=tuple(indices[first : first + size]))
        for number, first in enumerate(range(0, len(indices), size))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """All that a worker needs to know; travels to other processes and machines."""

    cache: str
    images: str | None
    head: str
    """A folder."""
    head_class: str | None
    batch_size: int
    device: str
    lam: float
    threads: int
    """CPU threads of torch."""


class EvaluationWorker:
    """Runs units, one at a time."""

    def __init__(self, config: EvaluationConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.head = load_head(Path(config.head), head_class(config.head_class) if config.head_class else None)
        images = self.head.refined_size is not None
        self.priors = Priors.open(config.cache, images_dir=config.images, need_images=images, memory_bytes=MEMORY)

    def run(self, unit: WorkUnit) -> dict[str, Any]:
        """{"unit": its number, "outcome": what the head did}."""
        config = self.config
        outcome = run_head(
            self.head,
            self.priors,
            unit.indices,
            batch_size=config.batch_size,
            device=config.device,
            lam=config.lam,
        )
        return {"unit": unit.number, "outcome": outcome}
