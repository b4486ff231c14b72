"""Train a head from the cache alone: neither the LMM nor an image is opened.

A step is a pure function of the state before it and of the samples that seed and step number choose. So a training that
was killed goes on from its last stored state as if nothing had happened, and workers can share the steps (`team`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.errors import DatasetError, PipelineError
from stages.train_head.data import PriorsLike, splits_of
from stages.train_head.feed import Example, Steps
from stages.train_head.heads.base import Head, HeadOutput
from stages.train_head.losses import HeadLoss, head_loss
from stages.train_head.recipe import TrainConfig, rate
from stages.train_head.state import load_state, read_facts, require_same, save_state
from stages.train_head.team import Team
from stages.train_head.validation import validate


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
    """Samples of a split, in the manifest's order, without the replies that are searched for phrases."""
    searched = priors.samples.searched()
    return [index for index in priors.samples.where(split=[split]) if not searched[index]]


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


def train(
    head: Head,
    priors: PriorsLike,
    config: TrainConfig,
    *,
    device: str = "cpu",
    team: Team | None = None,
    keeping: Keeping | None = None,
    readers: int = 1,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
    on_validation: Callable[[dict[str, Any], Head], None] = lambda *_: None,
) -> History:
    """Train `head` in place on the split `train`; deterministic for a seed on one machine's CPU.

    A stored state of the same training is gone on from.  readers: threads that read the cache.
    on_step is told {"step", "steps", "epoch", "objects", "loss", "parts", "lr", "norm", "waiting", "seconds"} of every
    step, on a GPU while the next one runs; on_validation, on every worker, {"step", "epoch", "loss", "val_ciou_…",
    "best": is it the best so far?} and the head as it would be kept.
    PipelineError: the loss is not finite, or the stored state is of another training.
    """
    return Training(head, priors, config, device, team, keeping, readers).run(on_step, on_validation)


class Training:
    """What `train` does, epoch by epoch."""

    on_step: Callable[[dict[str, Any]], None] = staticmethod(lambda _: None)
    on_validation: Callable[[dict[str, Any], Head], None] = staticmethod(lambda *_: None)

    def __init__(
        self,
        head: Head,
        priors: PriorsLike,
        config: TrainConfig,
        device: str = "cpu",
        team: Team | None = None,
        keeping: Keeping | None = None,
        readers: int = 1,
    ) -> None:
        torch.manual_seed(config.seed)
        self.head, self.priors, self.config = head, priors, config
        self.device, self.team, self.keeping, self.readers = device, team or Team(), keeping, readers
        self.samples, self.val = trainable(priors), validation_samples(priors, config)
        splits = {"train": split_indices(priors, "train"), "val": self.val}
        failed = {name: sum(i in priors.failures for i in split) for name, split in splits.items()}
        self.history = History(failed=failed)
        self.settings = {"recipe": asdict(config), "workers": self.team.size, **(keeping.facts if keeping else {})}
        self.stored = read_facts(keeping.file) if keeping else None
        if keeping and self.stored is not None:
            require_same(keeping.file, self.stored["settings"], self.settings)
        else:
            head.fit(priors, self.samples)
        head.to(device).train()
        self.team.same_start(head)
        self.parameters = [p for p in head.parameters() if p.requires_grad]
        self.feed = Steps(head, priors, self.samples, config, self.team, device)
        self.per_epoch, self.steps = self.feed.per_epoch, len(self.feed) if self.parameters else 0
        self.pending: Callable[[], None] | None = None  # tells of the last step
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
        for examples in self.examples():
            self.step(examples)
        self._tell()
        with self._averaged(keep=True):
            self.head.eval()
        return self.history

    def examples(self) -> Generator[list[Example], None, None]:
        """What this worker adds to each of the steps that are left; the time that it is waited for is counted."""
        feed = self.feed.read(self.history.steps, self.readers) if self.steps else iter(())
        while True:
            start = time.perf_counter()
            examples = next(feed, None)
            self.history.waiting += time.perf_counter() - start
            if examples is None:
                return
            yield examples

    def step(self, examples: list[Example]) -> None:
        """One step of the optimiser, and whatever is due after it."""
        config, history = self.config, self.history
        epoch, learning_rate = (
            history.steps // self.per_epoch,
            config.lr * rate(history.steps, self.steps, config.warmup),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        objects, tokens = self._counts(examples)
        parts: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for each in examples:
            shares = {"objects": len(each.inputs.attention) / objects, "tokens": len(each.targets.keyword) / tokens}
            weighted = self._loss(each).parts(**shares)
            torch.stack(list(weighted.values())).sum().backward()
            parts = {name: parts.get(name, 0) + value.detach() for name, value in weighted.items()}
        self.team.add_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        if self.averages:
            self._average()
        history.steps += 1
        history.objects += objects
        news = {"step": history.steps, "steps": self.steps, "epoch": epoch, "objects": objects, "lr": learning_rate}
        told = self._told(parts, norm)
        self._tell()  # of the step before: a GPU has work meanwhile
        self.pending = partial(self._hear, told, news, examples)
        ended, every = history.steps % self.per_epoch == 0, config.validate_every
        validated = ended or bool(every and history.steps % every == 0)
        if validated:
            self._validate(epoch + ended)
        self._keep(ended or (validated and history.best is history.validations[-1]))

    def _tell(self) -> None:
        """Hear of the last step, and tell it."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending()

    def _hear(self, told: Callable[[], dict[str, Any]], news: dict[str, Any], examples: list[Example]) -> None:
        found = told()
        if not math.isfinite(found["loss"] + found["norm"]):
            named = ", ".join(self.priors.samples[i].sample_id for each in examples for i in each.indices[:3])
            raise PipelineError(
                f"the loss is {found['loss']}, its gradient's norm {found['norm']}, at step {news['step']} (samples "
                f"{named}, …): lower --lr, or train with --precision float32"
            )
        self.losses = [self.losses[0] + found["loss"], self.losses[1] + 1]
        self._clock()
        self.on_step(found | news | {"waiting": self.history.waiting, "seconds": self.history.seconds})

    def _loss(self, example: Example) -> HeadLoss:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.head(example.inputs.to(self.device))
        return head_loss(_float32(output), example.targets.to(self.device))

    def _counts(self, examples: list[Example]) -> tuple[int, int]:
        """Objects and keyword tokens of the whole step, of all workers; what losses are means over."""
        objects = sum(len(each.inputs.attention) for each in examples)
        tokens = sum(len(each.targets.keyword) for each in examples)
        if self.team.size > 1:
            objects, tokens = self.team.add(torch.tensor([objects, tokens], device=self.device)).tolist()
        return max(1, objects), max(1, tokens)

    def _told(self, parts: dict[str, Tensor], norm: Tensor) -> Callable[[], dict[str, Any]]:
        """The step's losses over all workers, on their way from the device; called, it waits for them."""
        names = ["coarse_bce", "coarse_dice", "refined_bce", "refined_dice", "keyword"]
        none = torch.zeros((), device=self.device)
        values = torch.stack([parts.get(name, none).float() for name in names])
        host = torch.cat([self.team.add(values), norm.reshape(1).to(values)]).to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if values.is_cuda else None
        if arrived is not None:
            arrived.record()

        def told() -> dict[str, Any]:
            if arrived is not None:
                arrived.synchronize()
            found = dict(zip([*names, "norm"], host.tolist(), strict=True))
            known = {name: found[name] for name in names if name in parts or self.team.size > 1}
            return {"loss": math.fsum(known.values()), "parts": known, "norm": found["norm"]}

        return told

    def _validate(self, epoch: int) -> None:
        self._tell()
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
        if not (due and self.keeping):
            return
        self.saved = time.perf_counter()
        self._tell()
        if not self.team.leads:
            return
        facts = {"settings": self.settings, "history": asdict(self.history), "losses": self.losses}
        save_state(self.keeping.file, self.head, self.optimizer, self.averages, facts)

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
    """Losses are computed in float32 at least."""

    def wide(logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    return HeadOutput(
        coarse=wide(output.coarse),
        refined=None if output.refined is None else wide(output.refined),
        keyword=None if output.keyword is None else wide(output.keyword),
    )
