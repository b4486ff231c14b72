"""How many samples a forward pass should take: measured once on the device, before the plan is made."""

from __future__ import annotations

import gc
import os
import resource
import time
from typing import Any, Final

import torch
from PIL import Image

from manifests.errors import ModelError
from manifests.schema import Sample
from stages.extract.lmm import FrozenLMM
from stages.extract.processor import LMMInput
from stages.extract.stored import stored_fields, to_host
from stages.extract.worker import WorkerConfig

LARGEST: Final = 64
GAIN: Final = 1.05  # a batch twice as large must be so much faster, or the smaller one is taken
ROOM: Final = 0.7  # of a GPU's memory; the rest is left to SAM
REPEATS: Final = 3


class BatchSizeProbe:
    """Runs copies of one sample in batches of 1, 2, 4, …; a worker whose only unit is that sample."""

    def __init__(self, config: WorkerConfig):
        torch.set_num_threads(config.threads)
        device_map = "auto" if config.gpus > 1 else None
        self.lmm = FrozenLMM(config.lmm, config.device, config.dtype, config.merge, device_map)
        self.gpu = config.device if config.device != "cpu" else None

    def run(self, sample: Sample) -> dict[str, Any]:
        """The size to plan with, and what each size gave. `sample`: the longest one; of its image only the size counts.

        The smallest size is taken that the next one does not beat by GAIN. Raises ModelError where one sample does not
        fit.
        """
        trials: list[dict[str, float]] = []
        size = 1
        while size <= LARGEST and self._has_room(trials):
            try:
                trials.append(self._trial(sample, size))
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
        best = float("inf")
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.gpu)
        for repeat in range(1 + REPEATS):  # the first one warms up
            start = time.perf_counter()
            fields = stored_fields(self.lmm.run(batch), views, self.lmm.preset.grid)
            values = [to_host(value) for value in fields.values()]
            if self.gpu:
                torch.cuda.synchronize(self.gpu)
            best = min(best, time.perf_counter() - start) if repeat else best
            del fields, values
        gc.collect()
        return {"size": size, "samples_per_s": size / best, "peak_gib": self._peak()}

    def _input(self, sample: Sample) -> LMMInput:
        size = (sample.width, sample.height)
        answer = self.lmm.processor.answer(sample)
        return LMMInput(
            image=self.lmm.prepare(Image.new("RGB", size)),
            prompt=self.lmm.processor.prompt(sample.prompt, size),
            answer_ids=answer.ids,
            object_tokens=answer.tokens_of(len(sample.objects)),
        )

    def _peak(self) -> float:
        if self.gpu:
            return torch.cuda.max_memory_allocated(self.gpu) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _has_room(self, trials: list[dict[str, float]]) -> bool:
        """Whether a batch twice as large as the last one fits: its growth is twice the last growth."""
        if len(trials) < 2:
            return True
        last = trials[-1]["peak_gib"]
        growth = 2 * (last - trials[-2]["peak_gib"])
        if self.gpu:
            return last + growth <= ROOM * torch.cuda.mem_get_info(self.gpu)[1] / 2**30
        return growth <= os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
