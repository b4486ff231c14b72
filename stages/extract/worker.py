"""The worker: fills one unit (one shard of every array) at a time with what the frozen LMM or the frozen SAM says.

A plain class; Ray wraps it (`pipeline.runtime`), `--local` runs it in the driver's process. A unit has three steps:
read (images, pixels, input ids: CPU), compute (the models), write (checksums, disk). Each step takes one unit at a
time, so several threads that run units make a pipeline: the models do not wait for files.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

import torch

from manifests.errors import PipelineError
from stages.extract.checkpoint import first_line
from stages.extract.image_units import ImageUnits
from stages.extract.prior_units import PriorUnits
from stages.extract.stopwatch import Stopwatch
from stages.extract.work import Work, WorkerConfig, WorkUnit

Units = ImageUnits | PriorUnits


class ExtractionWorker:
    """Runs units, from one thread or from several. Models are loaded at the first unit that needs them, once."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        self.kinds: Final[dict[str, Units]] = {"images": ImageUnits(config), "priors": PriorUnits(config)}
        self._reading, self._computing, self._writing = Lock(), Lock(), Lock()
        self._failed: dict[str, Exception] = {}
        torch.set_num_threads(config.threads)

    def run(self, unit: WorkUnit) -> dict[str, Any]:
        """Fill and commit one unit; says how many objects and bytes, which samples failed, and where the time went."""
        if self.config.device.startswith("cuda:"):
            torch.cuda.set_device(self.config.device)  # of this thread
        units = self.kinds[unit.kind]
        work = Work(number=unit.number, watch=Stopwatch(self.config.device if self.config.gpus == 1 else None))
        with self._reading:
            self.load(unit.kind)
            with work.watch("read"):
                units.read(work)
        with self._computing:
            self._compute(unit, units, work)
        with self._writing, work.watch("write"):
            report = units.write(work)
        seconds = work.watch.seconds()
        return report | {"failures": work.failures, "kind": unit.kind, "unit": unit.number, "seconds": seconds}

    def load(self, kind: str) -> None:
        """Load a kind's model while nothing is computed, and the caller sees to it that nothing is read meanwhile.

        transformers sets torch's default dtype while it loads, for all threads.
        """
        if kind in self._failed:  # the same error, not the same minutes
            raise self._failed[kind]
        if "model" not in self.kinds[kind].__dict__:
            with self._computing:
                try:
                    _ = self.kinds[kind].model
                except Exception as error:
                    self._failed[kind] = error
                    raise

    def _compute(self, unit: WorkUnit, units: Units, work: Work) -> None:
        for batch in work.batches:
            try:
                work.computed.append(units.compute(work, batch))
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise PipelineError(
                    f"{unit} does not fit into the memory of {self.config.device} ({first_line(error)}): give "
                    f"{units.smaller(len(batch.rows))}"
                ) from error
        # on several GPUs the host's clock measures the LMM: most of its time passes here
        with work.watch("lmm" if self.config.gpus > 1 and unit.kind == "priors" else "wait"):
            units.synchronise()
