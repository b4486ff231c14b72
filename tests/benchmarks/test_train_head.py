"""The benchmark's two trainings take the same steps, and its cache is one that training accepts."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.train_head import SMALL, Config, FromMemory, made_cache, take_turns, training
from stages.train_head.trainer import Training


def test_from_memory_are_the_steps_from_the_cache(tmp_path: Path) -> None:
    config = Config(quick=True, steps=2, batch_size=2)
    config.steps = 2
    priors = made_cache(tmp_path / "cache", SMALL, "tiny", samples=4)
    assert len(priors) == 4 and priors.objects() > 8 and not priors.failures
    cached, ready = (training(kind, priors, config) for kind in (Training, FromMemory))
    seconds = take_turns([cached, ready], repeats=0, steps=2)
    assert seconds == [[], []]  # the first turns warm up
    for a, b in zip(cached.head.parameters(), ready.head.parameters(), strict=True):
        assert torch.equal(a, b)
    assert cached.history.steps == ready.history.steps == 2
