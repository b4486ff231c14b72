"""Training on several GPUs or nodes: the workers of one run, as torch.distributed knows them; or a single process.

Every worker draws its share of each step's samples and divides its losses by what all of them have; the gradients are
then added up. So the step is the one that a single worker would take with all the samples in its batch, however they
are dealt out, and a worker without any is no special case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """This process among the workers of a run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_process(cls) -> Team:
        """The default process group, where there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Does this one write, and tell the user?"""
        return self.rank == 0

    def add(self, values: Tensor) -> Tensor:
        """The sum over all workers, in place; `values` must be on the device that the workers talk through."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over all workers; a missing one counts as 0."""
        if self.size == 1:
            return
        trained = list(parameters)
        for each in trained:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        # one message: heads are small, and a message for each parameter is what would take the time
        joined = torch.cat([each.grad.flatten() for each in trained if each.grad is not None])
        dist.all_reduce(joined)
        for each, part in zip(trained, joined.split([each.numel() for each in trained]), strict=True):
            assert each.grad is not None
            each.grad.copy_(part.view_as(each))

    def same_start(self, module: nn.Module) -> None:
        """Everyone takes the weights and buffers of the first."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
