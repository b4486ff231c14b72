"""What every step of a training is fed: a function of seed and step number, so that anyone can make it, anywhere.

On the CPU one thread reads ahead: more would take the cores from the optimiser. A GPU's host has some to spare, and a
GPU makes numbers of the cache's float16 for itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from stages.train_head.data import PriorsLike, prefetch, read_batch, targets_of
from stages.train_head.heads.base import Head, HeadBatch
from stages.train_head.recipe import TrainConfig
from stages.train_head.targets import Targets
from stages.train_head.team import Team


@dataclass(kw_only=True, slots=True)
class Example:
    """One batch of a step."""

    indices: list[int]
    """Of its samples, into the manifest."""
    inputs: HeadBatch
    targets: Targets

    def pin_memory(self) -> Example:
        """The same where a GPU fetches it from by itself."""
        return Example(indices=self.indices, inputs=self.inputs.pin_memory(), targets=self.targets.pin_memory())


class Steps:
    """`steps[number]`: what one worker of a team adds to that step of the training, a list of at most `accumulate`."""

    def __init__(
        self, head: Head, priors: PriorsLike, samples: list[int], config: TrainConfig, team: Team, device: str
    ) -> None:
        self.head = head
        self._order = lru_cache(maxsize=2)(partial(epoch_order, samples, config.seed))  # reads of two epochs overlap
        self.priors, self.samples, self.config, self.team, self.device = priors, samples, config, team, device
        self.per_epoch = math.ceil(len(samples) / (team.size * config.accumulate * config.batch_size))

    def __len__(self) -> int:
        return self.config.epochs * self.per_epoch

    def __getitem__(self, number: int) -> list[Example]:
        if number + 1 < len(self):
            # the disk works while this step is put together
            self.priors.advise(index for group in self.groups(number + 1) for index in group)
        batches = [read_batch(self.priors, group, self.head, self.device) for group in self.groups(number)]
        return [
            Example(indices=batch.indices, inputs=batch.inputs, targets=targets_of(self.priors, batch, self.head))
            for batch in batches
            if batch is not None
        ]

    def groups(self, number: int) -> list[list[int]]:
        """The samples of each batch of that step."""
        epoch, step = divmod(number, self.per_epoch)
        order, size = self._order(epoch), self.config.batch_size
        share = size * self.config.accumulate
        start = (step * self.team.size + self.team.rank) * share
        return [group for i in range(start, start + share, size) if (group := order[i : i + size])]

    def read(self, first: int, threads: int = 1) -> Iterator[list[Example]]:
        """All steps from `first` on, read ahead by so many threads."""
        jobs = (partial(self._ready, number) for number in range(first, len(self)))
        return prefetch(jobs, threads=threads, depth=max(4, 2 * threads))

    def _ready(self, number: int) -> list[Example]:
        gpu = self.device.startswith("cuda")
        return [example.pin_memory() if gpu else example for example in self[number]]


def epoch_order(samples: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The samples of an epoch, shuffled by seed and epoch."""
    order = list(samples)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
