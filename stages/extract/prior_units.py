"""Units of the priors cache: the frozen LMM over the plan's batches, and what a head needs of every pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from torch import Tensor

from cache.checks import all_finite
from cache.plan import ImageRows, PlanRow, PlanRows
from cache.store import Store
from manifests.errors import DatasetError
from manifests.manifest import Samples
from stages.extract.attention import WordRows
from stages.extract.grids import View
from stages.extract.lmm import FrozenLMM
from stages.extract.processor import LMMInput, LMMProcessor
from stages.extract.stored import stored_fields, to_host
from stages.extract.work import Work, WorkerConfig, empty_unit

SLOTS_OF: Final = {  # array -> the field of the plan's row that says where a sample begins in it
    "attention": "slot",
    "attention_mass": "slot",
    "hidden": "token_slot",
    "hidden_scale": "token_slot",
    "answer_hidden": "answer_slot",
    "answer_scale": "answer_slot",
}


def load_lmm(config: WorkerConfig, processor: LMMProcessor | None = None) -> FrozenLMM:
    """The LMM as a worker has it."""
    return FrozenLMM(config.lmm, config.device, config.dtype, config.merge, gpus=config.gpus, processor=processor)


@dataclass(kw_only=True, slots=True)
class _Batch:
    """Rows of the plan and what the LMM takes of them."""

    rows: list[PlanRow]
    inputs: dict[str, Tensor]
    words: list[WordRows]
    views: list[tuple[View, ...]]
    """Of every object."""


class PriorUnits:
    """The three steps of such a unit."""

    def __init__(self, config: WorkerConfig):
        self.config = config

    @cached_property
    def store(self) -> Store:
        return Store.open(self.config.cache)

    @cached_property
    def samples(self) -> Samples:
        return Samples(self.store.file("manifest.parquet"))

    @cached_property
    def rows(self) -> PlanRows:
        return PlanRows(self.store.file("rows.parquet"))

    @cached_property
    def images(self) -> ImageRows:
        """The plan of the image cache: which content every image has."""
        return ImageRows(Store.open(self.config.images).file("rows.parquet"))

    @cached_property
    def processor(self) -> LMMProcessor:
        return LMMProcessor(self.config.lmm)

    @cached_property
    def model(self) -> FrozenLMM:
        """The LMM."""
        return load_lmm(self.config, self.processor)

    def read(self, work: Work) -> None:
        for rows in self._batches(work.number):
            good, batch = [], []
            for row in rows:
                try:
                    batch.append(self._input(row))
                    good.append(row)
                except DatasetError as error:
                    work.failures.append({"sample": row.sample, "reason": str(error)})
            if good:
                inputs, words = self.processor.collate(batch, rows[0].length)
                inputs = {name: self.config.pinned(value) for name, value in inputs.items()}
                views = [view for sample in batch for view in sample.views]
                work.batches.append(_Batch(rows=good, inputs=inputs, words=words, views=views))

    def compute(self, work: Work, batch: _Batch) -> dict[str, Tensor]:
        inputs = self.model.on_device(batch.inputs)
        with work.watch.device("lmm"):
            captured = self.model.capture.run(inputs, batch.words)
        with work.watch.device("scale"):
            fields = stored_fields(captured, batch.views, self.config.lmm.grid)
        return {name: to_host(values) for name, values in fields.items()}

    def synchronise(self) -> None:
        """Wait for the GPUs, if there are any."""
        self.model.synchronise()

    def write(self, work: Work) -> dict[str, Any]:
        arrays = empty_unit(self.store)
        placed: list[PlanRow] = []
        for batch, computed in zip(work.batches, work.computed, strict=True):
            fields = {name: values.numpy() for name, values in computed.items()}
            placed += self._place(arrays, work, batch.rows, fields)
        counts = {"objects": sum(row.objects for row in placed), "samples": len(placed)}
        return work.commit(self.store, arrays) | counts

    def smaller(self, size: int) -> str:
        """The cure where a batch of `size` samples does not fit."""
        if size == 1:
            return "--gpus-per-worker 2 or more, --dtype bfloat16, or a --device with more"
        return f"--batch-size {size // 2} (another plan: with --overwrite, or another --cache)"

    def _batches(self, unit: int) -> Iterator[list[PlanRow]]:
        """The plan's batches of a unit, in order."""
        members = [self.rows[index] for index in np.flatnonzero(self.rows.numbers("unit") == unit).tolist()]
        for number in sorted({row.batch for row in members}):
            yield [row for row in members if row.batch == number]

    def _input(self, row: PlanRow) -> LMMInput:
        sample = self.samples[row.sample]
        size = (sample.width, sample.height)
        positions = iter(row.token_positions)
        return LMMInput(
            image=self.processor.prepare(self.config.open(sample.image_path, size, self.images[row.image].image)),
            prompt=self.processor.prompt(sample.prompt, size),
            answer_ids=list(row.answer_ids),
            object_tokens=[[next(positions) for _ in range(count)] for count in row.token_counts],
        )

    def _place(
        self, arrays: dict[str, np.ndarray], work: Work, rows: list[PlanRow], fields: dict[str, np.ndarray]
    ) -> list[PlanRow]:
        """Copy the batch's results to the slots that the plan gave them; a sample with inf or nan fails instead."""
        done = {"slot": 0, "token_slot": 0, "answer_slot": 0}
        placed = []
        for row in rows:
            counts = {"slot": row.objects, "token_slot": sum(row.token_counts), "answer_slot": len(row.answer_ids)}
            parts = {name: fields[name][done[kind] : done[kind] + counts[kind]] for name, kind in SLOTS_OF.items()}
            if bad := [name for name, part in parts.items() if not all_finite(part)]:
                reason = f"inf or nan in the LMM's {', '.join(bad)} with {self.config.dtype}: give another --dtype"
                work.failures.append({"sample": row.sample, "reason": reason})
            else:
                placed.append(row)
                for name, part in parts.items():
                    start = getattr(row, SLOTS_OF[name]) - work.number * len(arrays[name])
                    arrays[name][start : start + len(part)] = part
            for kind, count in counts.items():
                done[kind] += count
        return placed
