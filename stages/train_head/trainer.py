"""Train a head from the cache alone: neither the LMM nor an image is opened.

A step is a pure function of the state before it and of the samples that seed and step number choose. So a training that
was killed goes on from its last stored state as if nothing had happened, and workers can share the steps (`team`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.errors import DatasetError, PipelineError
from stages.train_head.data import Batch, PriorsLike, prefetch, read_batch, reader_threads, splits_of, targets_of
from stages.train_head.heads.base import Head, HeadOutput
from stages.train_head.losses import HeadLoss, head_loss
from stages.train_head.recipe import TrainConfig, rate
from stages.train_head.state import load_state, read_facts, require_same, save_state
from stages.train_head.targets import Targets
from stages.train_head.team import Team
from stages.train_head.validation import validate

Examples = list[tuple[Batch, Targets]]


@dataclass(kw_only=True, slots=True)
class History:
    """What happened: one record per validation, and where the time went (seconds); all of it JSON."""

    validations: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    objects: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds the optimiser waited for data."""
    failed: dict[str, int] = field(default_factory=dict)
    """Samples that failed in extraction: of `train`, left out; of the validated ones, misses of all their objects."""
    best: dict[str, Any] | None = None
    """The validation of the best weights."""


@dataclass(kw_only=True, slots=True)
class Keeping:
    """Where a training's state is kept, and when."""

    file: Path
    minutes: float = 2.0
    """At least so long between two writings; also at the end of every epoch. 0: after every step."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What must be the same for a training that goes on: the head, the priors."""


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


def validation_samples(priors: PriorsLike, config: TrainConfig) -> list[int]:
    """The first samples of referring expressions of `val`; PNG's `val` is what papers report, it chooses nothing."""
    return priors.samples.where(split=["val"], task=["referring"])[: config.validate]


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
    team: Team | None = None,
    keeping: Keeping | None = None,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
    on_validation: Callable[[dict[str, Any], Head], None] = lambda *_: None,
) -> History:
    """Train `head` in place on the split `train`; deterministic for a seed on one machine's CPU.

    A stored state of the same training is gone on from. on_step is told {"step", "steps", "epoch", "objects", "loss",
    "parts", "lr", "norm", "waiting"} after every step; on_validation, on every worker, {"step", "epoch", "loss",
    "val_ciou_…", "best": is it the best so far?} and the head as it would be kept.
    PipelineError: the loss is not finite, or the stored state is of another training.
    """
    return Training(head, priors, config, device, team or Team(), keeping).run(on_step, on_validation)


class Training:
    """What `train` does, epoch by epoch."""

    on_step: Callable[[dict[str, Any]], None] = staticmethod(lambda _: None)
    on_validation: Callable[[dict[str, Any], Head], None] = staticmethod(lambda *_: None)

    def __init__(
        self, head: Head, priors: PriorsLike, config: TrainConfig, device: str, team: Team, keeping: Keeping | None
    ) -> None:
        torch.manual_seed(config.seed)
        self.head, self.priors, self.config = head, priors, config
        self.device, self.team, self.keeping = device, team, keeping
        self.samples, self.val = trainable(priors), validation_samples(priors, config)
        self.per_epoch = math.ceil(len(self.samples) / (team.size * config.accumulate * config.batch_size))
        splits = {"train": split_indices(priors, "train"), "val": self.val}
        failed = {name: sum(i in priors.failures for i in split) for name, split in splits.items()}
        self.history = History(failed=failed)
        self.settings = {"recipe": asdict(config), "workers": team.size, **(keeping.facts if keeping else {})}
        self.stored = read_facts(keeping.file) if keeping else None
        if keeping and self.stored is not None:
            require_same(keeping.file, self.stored["settings"], self.settings)
        else:
            head.fit(priors, self.samples)
        head.to(device).train()
        team.same_start(head)
        self.parameters = [p for p in head.parameters() if p.requires_grad]
        self.steps = config.epochs * self.per_epoch if self.parameters else 0
        self.optimizer = torch.optim.AdamW(
            self.parameters or [torch.zeros(0)], config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.averages: dict[str, Tensor] = {}
        if config.ema:
            self.averages = {n: p.detach().clone() for n, p in head.named_parameters() if p.requires_grad}
        self.losses: list[Any] = [0.0, 0]  # sum and number since the last validation
        self.mark = self.saved = time.perf_counter()
        if keeping and self.stored is not None:
            self._restore(keeping.file, self.stored)

    def run(self, on_step: Callable[..., None], on_validation: Callable[..., None]) -> History:
        """All steps that are left."""
        self.on_step, self.on_validation = on_step, on_validation
        self.mark = time.perf_counter()
        if self.stored is None:
            self._validate(epoch=0)
        while self.history.steps < self.steps:
            self.run_epoch()
        self._clock()
        with self._averaged(keep=True):
            self.head.eval()
        return self.history

    def run_epoch(self) -> None:
        """The rest of the current epoch."""
        self.mark = time.perf_counter()
        epoch, first = divmod(self.history.steps, self.per_epoch)
        waited = time.perf_counter()
        for examples in self.examples(epoch, first):
            self.history.waiting += time.perf_counter() - waited
            self._step(epoch, examples)
            waited = time.perf_counter()

    def examples(self, epoch: int, first: int) -> Iterator[Examples]:
        """What this worker adds to each of an epoch's steps, from step `first` on; read ahead."""
        return prefetch(self._jobs(epoch, first), threads=reader_threads())

    def _step(self, epoch: int, examples: Examples) -> None:
        config, history = self.config, self.history
        learning_rate = config.lr * rate(history.steps, self.steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        objects, tokens = self._counts(examples)
        parts: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for batch, targets in examples:
            loss = self._loss(batch, targets)
            weighted = loss.parts(objects=len(batch.inputs.attention) / objects, tokens=len(targets.keyword) / tokens)
            torch.stack(list(weighted.values())).sum().backward()
            parts = {name: parts.get(name, 0) + value.detach() for name, value in weighted.items()}
        self.team.add_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        told = self._told(parts, norm)
        if not math.isfinite(told["loss"]):
            named = ", ".join(self.priors.samples[i].sample_id for batch, _ in examples for i in batch.indices[:3])
            raise PipelineError(
                f"the loss is {told['loss']} at step {history.steps + 1} (samples {named}, …): "
                "lower --lr, or train with --precision float32"
            )
        self.optimizer.step()
        if self.averages:
            self._average()
        history.steps += 1
        history.objects += objects
        self.losses = [self.losses[0] + told["loss"], self.losses[1] + 1]
        self._clock()
        self.on_step(
            told
            | {"step": history.steps, "steps": self.steps, "epoch": epoch, "objects": objects, "lr": learning_rate}
            | {"waiting": history.waiting, "seconds": history.seconds}
        )
        ended, every = history.steps % self.per_epoch == 0, config.validate_every
        if ended or (every and history.steps % every == 0):
            self._validate(epoch + ended)
        self._keep(ended)

    def _loss(self, batch: Batch, targets: Targets) -> HeadLoss:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.head(batch.inputs.to(self.device))
        return head_loss(_float32(output), targets.to(self.device))

    def _counts(self, examples: Examples) -> tuple[int, int]:
        """Objects and keyword tokens of the whole step, of all workers; what losses are means over."""
        objects = sum(len(batch.inputs.attention) for batch, _ in examples)
        tokens = sum(len(targets.keyword) for _, targets in examples)
        if self.team.size > 1:
            objects, tokens = self.team.add(torch.tensor([objects, tokens], device=self.device)).tolist()
        return max(1, objects), max(1, tokens)

    def _told(self, parts: dict[str, Tensor], norm: Tensor) -> dict[str, Any]:
        """The step's losses over all workers, fetched from the device at once."""
        names = ["coarse_bce", "coarse_dice", "refined_bce", "refined_dice", "keyword"]
        values = torch.stack([torch.as_tensor(parts.get(name, 0.0), device=self.device).float() for name in names])
        found = torch.cat([self.team.add(values), norm.reshape(1).to(values)]).tolist()
        known = {name: value for name, value in zip(names, found, strict=False) if name in parts or self.team.size > 1}
        return {"loss": math.fsum(known.values()), "parts": known, "norm": found[-1]}

    def _jobs(self, epoch: int, first: int) -> Iterator[Callable[[], Examples]]:
        """One job for each step of an epoch from step `first` on: it reads what this worker adds to it."""
        order, size = epoch_order(self.samples, self.config.seed, epoch), self.config.batch_size
        share = size * self.config.accumulate
        for step in range(first, self.per_epoch):
            start = (step * self.team.size + self.team.rank) * share
            after = start + self.team.size * share
            self.priors.advise(order[after : after + share])  # the disk works while this step is put together
            yield partial(
                self._read, [order[i : min(i + size, start + share)] for i in range(start, start + share, size)]
            )

    def _read(self, groups: list[list[int]]) -> Examples:
        batches = [read_batch(self.priors, group, self.head, self.device) for group in groups if group]
        return [(batch, targets_of(self.priors, batch, self.head)) for batch in batches if batch is not None]

    def _validate(self, epoch: int) -> None:
        record: dict[str, Any] = {"step": self.history.steps, "epoch": epoch}
        if self.losses[1]:
            record["loss"] = self.losses[0] / self.losses[1]
        self.losses = [0.0, 0]
        with self._averaged():
            if self.val:
                record |= validate(self.head, self.priors, self.val, self.config.batch_size, self.device, self.team)
                record["best"] = self.history.best is None or score(record) > score(self.history.best)
                if record["best"]:
                    self.history.best = record
            self._clock()
            record["seconds"] = round(self.history.seconds, 2)
            self.history.validations.append(record)
            self.on_validation(record, self.head)

    def _average(self) -> None:
        # as in common use: early averages forget the random start sooner
        decay = min(self.config.ema, (1 + self.history.steps) / (10 + self.history.steps))
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                if name in self.averages:
                    self.averages[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def _averaged(self, keep: bool = False) -> Iterator[None]:
        """The head with its averaged weights, if there are any; then with its own ones again, unless they are kept."""
        own = {n: p.detach().clone() for n, p in self.head.named_parameters() if n in self.averages}
        self.head.load_state_dict(self.averages, strict=False)
        try:
            yield
        finally:
            if not keep:
                self.head.load_state_dict(own, strict=False)

    def _keep(self, ended: bool) -> None:
        due = self.keeping and (ended or time.perf_counter() - self.saved >= 60 * self.keeping.minutes)
        if not (due and self.keeping and self.team.leads):
            return
        facts = {"settings": self.settings, "history": asdict(self.history), "losses": self.losses}
        save_state(self.keeping.file, self.head, self.optimizer, self.averages, facts)
        self.saved = time.perf_counter()

    def _restore(self, file: Path, stored: dict[str, Any]) -> None:
        self.averages = load_state(file, self.head, self.optimizer)
        self.history, self.losses = History(**stored["history"]), stored["losses"]

    def _clock(self) -> None:
        now = time.perf_counter()
        self.history.seconds += now - self.mark
        self.mark = now


def score(record: dict[str, Any]) -> float:
    """What the best weights are chosen by: cIoU of the masks that the head gives in the end."""
    return float(record.get("val_ciou_refined", record["val_ciou_coarse"]))


def _float32(output: HeadOutput) -> HeadOutput:
    return replace(
        output,
        coarse=output.coarse.float(),
        refined=None if output.refined is None else output.refined.float(),
        keyword=None if output.keyword is None else output.keyword.float(),
    )
