"""The worker: holds the frozen LMM and the frozen SAM, and fills one unit (one shard of every array) at a time.

A plain class; Ray wraps it (`pipeline.runtime`), `--local` runs it in the driver's process. A unit has three steps:
read (images, pixels, input ids: CPU), compute (the models), write (checksums, disk). Each step takes one unit at a
time, so several threads that run units make a pipeline: the models do not wait for files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache.plan import IMAGE_SCHEMA, ROW_SCHEMA, PlanRow, Rows
from cache.store import Store
from manifests.errors import DatasetError, PipelineError
from manifests.schema import read_manifest
from stages.extract.attention import Merge, WordRows
from stages.extract.checkpoint import first_line
from stages.extract.grids import View
from stages.extract.images import open_image, pad_bottom_right
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import LMMPreset
from stages.extract.processor import LMMInput, LMMProcessor
from stages.extract.sam import encode_images, load_sam, normalise_sam, sam_config
from stages.extract.stopwatch import Stopwatch
from stages.extract.stored import stored_fields, to_host


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkUnit:
    """One shard of every array of the image cache (`images`) or of the priors cache (`priors`)."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"unit {self.number} of {self.kind}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """All that a worker needs to know; travels to other processes and machines."""

    cache: Path
    images: Path
    data_root: Path
    lmm: LMMPreset
    dtype: str
    merge: Merge
    sam: str
    sam_checkpoint: Path | None
    device: str
    gpus: int
    """GPUs of this worker; more than one: the LMM's layers are spread over them."""
    threads: int
    """CPU threads of torch."""


def load_lmm(config: WorkerConfig, processor: LMMProcessor | None = None) -> FrozenLMM:
    """The LMM as a worker has it."""
    return FrozenLMM(config.lmm, config.device, config.dtype, config.merge, gpus=config.gpus, processor=processor)


@dataclass(kw_only=True, slots=True)
class _Batch:
    """One forward pass, read: the rows that go into it and what the models take."""

    rows: list[PlanRow]
    inputs: dict[str, Tensor]
    words: list[WordRows]
    views: list[tuple[View, ...]]
    """Of every object."""


@dataclass(kw_only=True, slots=True)
class _Images:
    """One forward pass of SAM's encoder, read: image rows and their pixels, uint8 [height, width, 3]."""

    rows: list[int]
    pixels: list[Tensor]


@dataclass(kw_only=True, slots=True)
class _Unit:
    """A unit on its way: what was read, then what was computed, and what failed."""

    number: int
    watch: Stopwatch
    batches: list[Any] = field(default_factory=list)
    computed: list[dict[str, Tensor]] = field(default_factory=list)
    """For each batch the cache's fields, on the host."""
    failures: list[dict[str, Any]] = field(default_factory=list)


class ExtractionWorker:
    """Runs units, from one thread or from several. Models are loaded at the first unit that needs them, once."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        self.on_gpu = config.device != "cpu"
        self._reading, self._computing, self._writing = Lock(), Lock(), Lock()
        self._failed: dict[str, Exception] = {}
        torch.set_num_threads(config.threads)

    @cached_property
    def priors(self) -> Store:
        return Store.open(self.config.cache)

    @cached_property
    def images(self) -> Store:
        return Store.open(self.config.images)

    @cached_property
    def samples(self):
        return read_manifest(self.priors.root / "manifest.parquet")

    @cached_property
    def sample_rows(self) -> Rows:
        return Rows.read(self.priors.root / "rows.parquet", ROW_SCHEMA)

    @cached_property
    def image_rows(self) -> Rows:
        return Rows.read(self.images.root / "rows.parquet", IMAGE_SCHEMA)

    @cached_property
    def processor(self) -> LMMProcessor:
        return LMMProcessor(self.config.lmm)

    @cached_property
    def lmm(self) -> FrozenLMM:
        return load_lmm(self.config, self.processor)

    @cached_property
    def sam(self):
        sam = load_sam(self.config.sam, self.config.sam_checkpoint)
        return sam.requires_grad_(False).to(self.config.device)

    def run(self, unit: WorkUnit) -> dict[str, Any]:
        """Fill and commit one unit; says how many objects and bytes, which samples failed, and where the time went."""
        if self.config.device.startswith("cuda:"):
            torch.cuda.set_device(self.config.device)  # of this thread
        images = unit.kind == "images"
        read, compute, write = (
            (self._read_images, self._encode, self._write_images)
            if images
            else (self._read_samples, self._capture, self._write_samples)
        )
        work = _Unit(number=unit.number, watch=Stopwatch(self.config.device if self.config.gpus == 1 else None))
        with self._reading:
            self._load("sam" if images else "lmm")
            with work.watch("read"):
                read(work)
        with self._computing:
            for batch in work.batches:
                try:
                    work.computed.append(compute(work, batch))
                except (torch.OutOfMemoryError, MemoryError) as error:
                    raise self._does_not_fit(unit, len(batch.rows), error) from error
            with work.watch("lmm" if self.config.gpus > 1 and not images else "wait"):
                self._wait(images)
        with self._writing, work.watch("write"):
            report = write(work)
        seconds = work.watch.seconds()
        return report | {"failures": work.failures, "kind": unit.kind, "unit": unit.number, "seconds": seconds}

    def _load(self, model: str) -> None:
        """Load a model while nothing is read or computed: transformers sets torch's default dtype for all threads."""
        if model in self._failed:  # the same error, not the same minutes
            raise self._failed[model]
        if model not in self.__dict__:
            with self._computing:
                try:
                    getattr(self, model)
                except Exception as error:
                    self._failed[model] = error
                    raise

    def _wait(self, images: bool) -> None:
        """Until the device has computed the unit, and its results are in the host's memory."""
        if self.on_gpu and images:
            torch.cuda.synchronize(self.config.device)
        elif self.on_gpu:
            self.lmm.synchronise()

    def _does_not_fit(self, unit: WorkUnit, size: int, error: BaseException) -> PipelineError:
        if unit.kind == "images":
            cure = "a smaller --sam, or a --device with more"
        elif size == 1:
            cure = "--gpus-per-worker 2 or more, --dtype bfloat16, or a --device with more"
        else:
            cure = f"--batch-size {size // 2} (another plan: with --overwrite, or another --cache)"
        where = f"does not fit into the memory of {self.config.device} ({first_line(error)})"
        return PipelineError(f"{unit} {where}: give {cure}")

    def _read_images(self, work: _Unit) -> None:
        size = sam_config(self.config.sam).image_size
        rows = np.flatnonzero(self.image_rows.numbers("unit") == work.number)
        for start in range(0, len(rows), SAM_BATCH):
            batch = _Images(rows=[], pixels=[])
            for row in map(int, rows[start : start + SAM_BATCH]):
                width, height = (self.image_rows.number(name, row) for name in ("width", "height"))
                try:
                    image = self._open(self.image_rows.table["path"][row].as_py(), width, height)
                except DatasetError as error:
                    work.failures.append({"image": row, "reason": str(error)})
                    continue
                batch.rows.append(row)
                batch.pixels.append(self._pinned(torch.from_numpy(pad_bottom_right(image.convert("RGB"), size)[0])))
            if batch.rows:
                work.batches.append(batch)

    def _encode(self, work: _Unit, batch: _Images) -> dict[str, Tensor]:
        return {"embedding": torch.cat(self._embeddings(work, batch.pixels))}

    def _embeddings(self, work: _Unit, pixels: list[Tensor]) -> list[Tensor]:
        """SAM's embeddings on the host; where they do not fit together, half of them at a time."""
        try:
            return [self._embedding(work, pixels)]
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        return self._embeddings(work, pixels[:half]) + self._embeddings(work, pixels[half:])

    def _embedding(self, work: _Unit, pixels: list[Tensor]) -> Tensor:
        batch = normalise_sam(pixels, sam_config(self.config.sam).image_size, self.config.device)
        with work.watch.device("sam"):
            embeddings = encode_images(self.sam, batch)
        return to_host(embeddings.half())

    def _write_images(self, work: _Unit) -> dict[str, Any]:
        arrays = _empty_unit(self.images)
        first = work.number * len(arrays["embedding"])
        written = 0
        for batch, fields in zip(work.batches, work.computed, strict=True):
            for row, embedding in zip(batch.rows, fields["embedding"].numpy(), strict=True):
                if np.isfinite(embedding).all():
                    arrays["embedding"][self.image_rows.number("slot", row) - first] = embedding
                    written += 1
                else:
                    reason = "inf or nan in SAM's embedding: give another --sam"
                    work.failures.append({"image": row, "reason": reason})
        return self._commit(self.images, work, arrays) | {"images": written}

    def _read_samples(self, work: _Unit) -> None:
        for rows in _batches(self.sample_rows, work.number):
            good, batch = [], []
            for row in rows:
                try:
                    batch.append(self._input(row))
                    good.append(row)
                except DatasetError as error:
                    work.failures.append({"sample": row.sample, "reason": str(error)})
            if good:
                inputs, words = self.processor.collate(batch, rows[0].length)
                inputs = {name: self._pinned(value) for name, value in inputs.items()}
                views = [view for sample in batch for view in sample.views]
                work.batches.append(_Batch(rows=good, inputs=inputs, words=words, views=views))

    def _capture(self, work: _Unit, batch: _Batch) -> dict[str, Tensor]:
        inputs = self.lmm.on_device(batch.inputs)
        with work.watch.device("lmm"):
            captured = self.lmm.capture.run(inputs, batch.words)
        with work.watch.device("scale"):
            fields = stored_fields(captured, batch.views, self.config.lmm.grid)
        return {name: to_host(values) for name, values in fields.items()}

    def _write_samples(self, work: _Unit) -> dict[str, Any]:
        arrays = _empty_unit(self.priors)
        placed: list[PlanRow] = []
        for batch, computed in zip(work.batches, work.computed, strict=True):
            fields = {name: values.numpy() for name, values in computed.items()}
            placed += self._place(arrays, work, batch.rows, fields)
        counts = {"objects": sum(row.objects for row in placed), "samples": len(placed)}
        return self._commit(self.priors, work, arrays) | counts

    def _input(self, row: PlanRow) -> LMMInput:
        sample = self.samples[row.sample]
        size = (sample.width, sample.height)
        positions = iter(row.token_positions)
        return LMMInput(
            image=self.processor.prepare(self._open(sample.image_path, *size)),
            prompt=self.processor.prompt(sample.prompt, size),
            answer_ids=list(row.answer_ids),
            object_tokens=[[next(positions) for _ in range(count)] for count in row.token_counts],
        )

    def _open(self, path: str, width: int, height: int) -> Image.Image:
        # named as in the manifest: the reason goes into the cache, and the data root may be moved before a resume
        return open_image(self.config.data_root / path, (width, height), name=path)

    def _pinned(self, values: Tensor) -> Tensor:
        """Where the GPU fetches it from by itself."""
        return values.pin_memory() if self.on_gpu else values

    def _place(
        self, arrays: dict[str, np.ndarray], work: _Unit, rows: list[PlanRow], fields: dict[str, np.ndarray]
    ) -> list[PlanRow]:
        """Copy the batch's results to the slots that the plan gave them; a sample with inf or nan fails instead."""
        done = {"slot": 0, "token_slot": 0, "answer_slot": 0}
        placed = []
        for row in rows:
            counts = {"slot": row.objects, "token_slot": sum(row.token_counts), "answer_slot": len(row.answer_ids)}
            parts = {name: fields[name][done[kind] : done[kind] + counts[kind]] for name, kind in SLOTS_OF.items()}
            if bad := [name for name, part in parts.items() if not np.isfinite(part).all()]:
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

    def _commit(self, store: Store, work: _Unit, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        store.write_unit(work.number, arrays, {"failures": work.failures})
        return {"bytes": sum(a.nbytes for a in arrays.values())}


SAM_BATCH: Final = 8
SLOTS_OF: Final = {  # array -> the field of the plan's row that says where a sample begins in it
    "attention": "slot",
    "attention_mass": "slot",
    "hidden": "token_slot",
    "hidden_scale": "token_slot",
    "answer_hidden": "answer_slot",
    "answer_scale": "answer_slot",
}


def _empty_unit(store: Store) -> dict[str, np.ndarray]:
    return {name: np.zeros(spec.unit_shape, spec.dtype) for name, spec in store.meta.arrays.items()}


def _batches(rows: Rows, unit: int) -> Iterator[list[PlanRow]]:
    """The plan's batches of a unit, in order."""
    members = np.flatnonzero(rows.numbers("unit") == unit)
    numbers = rows.numbers("batch")[members]
    for number in np.unique(numbers):
        yield [rows.row(int(index)) for index in members[numbers == number]]
