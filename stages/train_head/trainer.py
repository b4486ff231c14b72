"""Train a head from the cache alone: neither the LMM nor an image is opened."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from manifests.errors import DatasetError
from manifests.masks import area, decode
from stages.train_head.data import Batch, PriorsLike, prefetch, read_batch, splits_of, targets_of
from stages.train_head.heads.base import Head, to_image_masks
from stages.train_head.losses import head_loss
from stages.train_head.targets import Targets


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The recipe; the defaults are the paper's."""

    epochs: int = 8
    """Passes over the training samples."""
    batch_size: int = 8
    """Samples (images) of a step."""
    lr: float = 1e-4
    """Peak learning rate of AdamW (betas 0.9, 0.999): linear warm-up, then cosine to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    warmup: float = 0.03
    """Share of the steps that warm up."""
    seed: int = 0
    """Of the head's weights and of the order of the samples."""
    validate: int = 150
    """Samples of the split `val` that are scored after every epoch; 0: none."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "clip"):
            if not getattr(self, name) > 0:  # also for nan
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), not {self.warmup}")


RECIPES = {"paper": TrainConfig(), "demo": TrainConfig(epochs=4, lr=1.5e-3)}


@dataclass(kw_only=True, slots=True)
class History:
    """What happened: one record per epoch, and where the time went (seconds)."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    objects: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds the optimiser waited for data."""
    failed: dict[str, int] = field(default_factory=dict)
    """Samples that failed in extraction: of `train`, left out; of the validated ones, misses of all their objects."""


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, cosine to 0."""
    start = max(1, round(warmup * steps))
    if step < start:
        return (step + 1) / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))


def split_indices(priors: PriorsLike, split: str) -> list[int]:
    """Samples of a split, in the manifest's order."""
    return priors.samples.where(split=[split])


def trainable(priors: PriorsLike) -> list[int]:
    """Samples of the split `train` without the failed ones; DatasetError where there is none."""
    found = split_indices(priors, "train")
    if not found:
        raise DatasetError(
            f"the cache has no sample of the split 'train' (its splits: {splits_of(priors)}); extract that split too"
        )
    usable = [i for i in found if i not in priors.failures]
    if not usable:
        raise DatasetError(
            f"all {len(found)} samples of the split 'train' failed in extraction (the first: "
            f"{' '.join(priors.failures[found[0]].split())}; the cache's splits: {splits_of(priors)}); "
            "mend the cause and extract again"
        )
    return usable


def epoch_order(indices: list[int], seed: int, epoch: int) -> list[int]:
    """The samples of an epoch, shuffled by seed and epoch."""
    order = list(indices)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def train(
    head: Head,
    priors: PriorsLike,
    config: TrainConfig,
    *,
    device: str = "cpu",
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
) -> History:
    """Train `head` in place on the split `train`; deterministic for a seed on one machine.

    on_step is told {"epoch", "steps", "objects", "loss"} after every step, and {"validation": ...} after every epoch.
    """
    torch.manual_seed(config.seed)
    train_split = trainable(priors)
    # narratives have no split of their own for choices: PNG's `val` is what papers report
    val_split = priors.samples.where(split=["val"], task=["referring"])[: config.validate]
    per_epoch = math.ceil(len(train_split) / config.batch_size)
    head.to(device).train()
    optimizer = torch.optim.AdamW(
        [p for p in head.parameters() if p.requires_grad],
        config.lr,
        betas=(0.9, 0.999),
        weight_decay=config.weight_decay,
    )
    steps = config.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate(s, steps, config.warmup))
    splits = {"train": split_indices(priors, "train"), "val": val_split}
    failed = {name: sum(i in priors.failures for i in split) for name, split in splits.items()}
    history, start = History(failed=failed), time.perf_counter()
    for epoch in range(config.epochs):
        losses: list[float] = []
        waited = time.perf_counter()
        for batch, targets in prefetch(
            _examples(priors, head, epoch_order(train_split, config.seed, epoch), config, device)
        ):
            history.waiting += time.perf_counter() - waited
            loss = head_loss(head(batch.inputs.to(device)), targets.to(device)).total
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            history.steps += 1
            history.objects += len(batch.inputs.attention)
            on_step({"epoch": epoch, "steps": steps, "objects": len(batch.inputs.attention), "loss": losses[-1]})
            waited = time.perf_counter()
        record = {"epoch": epoch + 1, "loss": sum(losses) / max(1, len(losses))}
        if val_split:
            record |= validate(head, priors, val_split, config.batch_size, device)
        history.epochs.append(record)
        on_step({"validation": record})
    history.seconds = time.perf_counter() - start
    head.eval()
    return history


def _examples(
    priors: PriorsLike, head: Head, order: list[int], config: TrainConfig, device: str
) -> Iterator[tuple[Batch, Targets]]:
    size = config.batch_size
    for start in range(0, len(order), size):
        priors.advise(order[start + size : start + 2 * size])  # the disk works while this batch is put together
        batch = read_batch(priors, order[start : start + size], embeddings=head.refined_size is not None, device=device)
        if batch is not None:
            yield batch, targets_of(priors, batch, head)


@torch.no_grad()
def validate(head: Head, priors: PriorsLike, indices: list[int], batch_size: int, device: str) -> dict[str, float]:
    """cIoU over the objects of these samples at the images' own sizes, coarse and refined; failed samples miss."""
    was_training = head.training
    head.eval()
    sums = torch.zeros(2, 2, dtype=torch.int64)
    for start in range(0, len(indices), batch_size):
        group = indices[start : start + batch_size]
        batch = read_batch(priors, group, embeddings=head.refined_size is not None)
        missed = [i for i in group if batch is None or i not in batch.indices]
        sums[:, 1] += sum(area(o.mask) for i in missed for o in priors.samples[i].objects)
        if batch is None:
            continue
        inputs = batch.inputs.to(device)
        for index, logits in zip(batch.indices, to_image_masks(head(inputs), inputs), strict=True):
            truth = torch.stack([torch.from_numpy(decode(o.mask)) for o in priors.samples[index].objects]).to(device)
            for k, predicted in enumerate((logits.coarse, logits.refined)):
                if predicted is not None:
                    sums[k, 0] += ((predicted > 0) & truth).sum().cpu()
                    sums[k, 1] += ((predicted > 0) | truth).sum().cpu()
    head.train(was_training)
    names = ["coarse", "refined"] if head.refined_size is not None else ["coarse"]
    return {f"val_ciou_{name}": (sums[k, 0] / sums[k, 1].clamp_min(1)).item() for k, name in enumerate(names)}
