"""How many samples a forward pass should take: measured once on the device, before the plan is made."""

from __future__ import annotations

import gc
import os
import resource
import time
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image

from manifests.errors import ModelError
from manifests.schema import Sample
from stages.extract.prior_units import load_lmm
from stages.extract.processor import LMMInput
from stages.extract.stored import stored_fields, to_host
from stages.extract.work import WorkerConfig

LARGEST: Final = 64
GAIN: Final = 1.05  # a batch twice as large must be so much faster, or the smaller one is taken
ROOM: Final = 0.7  # of a GPU's memory; the rest is left to SAM
REPEATS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Longest:
    """The probe's only unit: the sample with the longest input. Of its image only the size counts."""

    sample: Sample

    def __str__(self) -> str:
        return "the measurement of the batch size"


class BatchSizeProbe:
    """Runs copies of one sample in batches of 1, 2, 4, …, as the worker runs them; reading is not what it measures."""

    def __init__(self, config: WorkerConfig):
        torch.set_num_threads(config.threads)
        self.lmm = load_lmm(config)
        self.gpus = [] if config.device == "cpu" else [config.device] if config.gpus == 1 else range(config.gpus)

    def run(self, unit: Longest) -> dict[str, Any]:
        """The size to plan with, and what each size gave.

        The smallest size is taken that the next one does not beat by GAIN. Raises ModelError where one sample does not
        fit.
        """
        trials: list[dict[str, float]] = []
        size = 1
        while size <= LARGEST and self._has_room(trials):
            try:
                trials.append(self._trial(unit.sample, size))
            except (torch.OutOfMemoryError, MemoryError):
                break
            if size > 1 and trials[-1]["samples_per_s"] < GAIN * trials[-2]["samples_per_s"]:
                break
            size *= 2
        if not trials:
            raise ModelError(
                "one sample does not fit into the memory: give --dtype bfloat16, --gpus-per-worker 2 or more, or a "
                "--device with more"
            )
        faster = len(trials) == 1 or trials[-1]["samples_per_s"] >= GAIN * trials[-2]["samples_per_s"]
        best = trials[-1] if faster else trials[-2]
        return {"batch_size": int(best["size"]), "trials": trials}

    def _trial(self, sample: Sample, size: int) -> dict[str, float]:
        batch = [self._input(sample)] * size
        views = [view for each in batch for view in each.views]
        inputs, words = self.lmm.processor.collate(batch, batch[0].length)
        best = float("inf")
        for gpu in self.gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        for repeat in range(1 + REPEATS):  # the first one warms up
            start = time.perf_counter()
            captured = self.lmm.capture.run(self.lmm.on_device(inputs), words)
            fields = stored_fields(captured, views, self.lmm.preset.grid)
            values = [to_host(value) for value in fields.values()]
            self.lmm.synchronise()
            best = min(best, time.perf_counter() - start) if repeat else best
            del captured, fields, values
        gc.collect()
        return {"size": size, "samples_per_s": size / best, "peak_gib": self._peak()}

    def _input(self, sample: Sample) -> LMMInput:
        size = (sample.width, sample.height)
        answer = self.lmm.processor.answer(sample)
        return LMMInput(
            image=self.lmm.prepare(Image.new("RGB", size)),
            prompt=self.lmm.processor.prompt(sample.prompt, size),
            answer_ids=answer.ids,
            object_tokens=answer.tokens_of(sample.slots),
        )

    def _peak(self) -> float:
        """GiB; of several GPUs the fullest one's."""
        if self.gpus:
            return max(torch.cuda.max_memory_allocated(gpu) for gpu in self.gpus) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _has_room(self, trials: list[dict[str, float]]) -> bool:
        """Whether a batch twice as large as the last one fits: its growth is twice the last growth."""
        if len(trials) < 2:
            return True
        last = trials[-1]["peak_gib"]
        growth = 2 * (last - trials[-2]["peak_gib"])
        if self.gpus:
            return last + growth <= ROOM * min(torch.cuda.mem_get_info(gpu)[1] for gpu in self.gpus) / 2**30
        return growth <= os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
