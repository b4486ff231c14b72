"""The worker: holds the frozen LMM and the frozen SAM, and fills one unit (one shard of every array) at a time.

A plain class; Ray wraps it (`pipeline.runtime`), `--local` runs it in the driver's process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from cache.plan import IMAGE_SCHEMA, ROW_SCHEMA, PlanRow, Rows
from cache.store import Store
from manifests.errors import DatasetError, PipelineError
from manifests.schema import read_manifest
from stages.extract.attention import Merge
from stages.extract.checkpoint import first_line
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM, LMMInput
from stages.extract.presets import LMMPreset
from stages.extract.sam import encode_images, load_sam, preprocess_sam, sam_config
from stages.extract.stored import stored_fields


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
    threads: int
    """CPU threads of torch."""


class ExtractionWorker:
    """Runs units. Models are loaded at the first unit that needs them, once."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        torch.set_num_threads(config.threads)
        self.seconds: defaultdict[str, float] = defaultdict(float)

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
    def lmm(self) -> FrozenLMM:
        return FrozenLMM(self.config.lmm, self.config.device, self.config.dtype, self.config.merge)

    @cached_property
    def sam(self):
        sam = load_sam(self.config.sam, self.config.sam_checkpoint)
        return sam.requires_grad_(False).to(self.config.device)

    def run(self, unit: WorkUnit) -> dict[str, Any]:
        """Fill and commit one unit; says how many objects and bytes, which samples failed, and where the time went."""
        self.seconds.clear()
        run = self._run_images if unit.kind == "images" else self._run_priors
        try:
            return run(unit.number) | {"kind": unit.kind, "unit": unit.number, "seconds": dict(self.seconds)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            smaller = "a smaller --sam" if unit.kind == "images" else "a smaller --batch-size"
            raise PipelineError(
                f"{unit} does not fit into the memory of {self.config.device} ({first_line(error)}): give {smaller} "
                "(another plan: with --overwrite, or another --cache), or a --device with more"
            ) from error

    def _run_images(self, unit: int) -> dict[str, Any]:
        size = sam_config(self.config.sam).image_size
        arrays = _empty_unit(self.images)
        first = unit * len(arrays["embedding"])
        rows = np.flatnonzero(self.image_rows.numbers("unit") == unit)
        failures: list[dict[str, Any]] = []
        for start in range(0, len(rows), SAM_BATCH):
            good, pixels = [], []
            for row in map(int, rows[start : start + SAM_BATCH]):
                width, height = (self.image_rows.number(name, row) for name in ("width", "height"))
                path = self.image_rows.table["path"][row].as_py()
                try:
                    pixels.append(preprocess_sam(self._open(path, width, height), size)[0])
                    good.append(row)
                except DatasetError as error:
                    failures.append({"image": row, "reason": str(error)})
            if not good:
                continue
            with self._timed("sam"):
                embeddings = encode_images(self.sam, torch.stack(pixels)).to(torch.float16).cpu().numpy()
            for row, embedding in zip(good, embeddings, strict=True):
                if np.isfinite(embedding).all():
                    arrays["embedding"][self.image_rows.number("slot", row) - first] = embedding
                else:
                    failures.append({"image": row, "reason": "inf or nan in SAM's embedding: give another --sam"})
        return self._commit(self.images, unit, arrays, failures) | {"images": len(rows) - len(failures)}

    def _run_priors(self, unit: int) -> dict[str, Any]:
        arrays = _empty_unit(self.priors)
        failures: list[dict[str, Any]] = []
        objects = samples = 0
        for rows in _batches(self.sample_rows, unit):
            good, batch = [], []
            for row in rows:
                try:
                    batch.append(self._input(row))
                    good.append(row)
                except DatasetError as error:
                    failures.append({"sample": row.sample, "reason": str(error)})
            if not good:
                continue
            with self._timed("lmm"):
                captured = self.lmm.run(batch, rows[0].length)
            with self._timed("scale"):
                fields = stored_fields(captured, [v for s in batch for v in s.views], self.config.lmm.grid)
            placed = self._place(arrays, unit, good, fields, failures)
            objects += sum(row.objects for row in placed)
            samples += len(placed)
        done = {"objects": objects, "samples": samples}
        return self._commit(self.priors, unit, arrays, failures) | done

    def _input(self, row: PlanRow) -> LMMInput:
        sample = self.samples[row.sample]
        size = (sample.width, sample.height)
        image = self.lmm.prepare(self._open(sample.image_path, *size))
        positions = iter(row.token_positions)
        return LMMInput(
            image=image,
            prompt=self.lmm.processor.prompt(sample.prompt, size),
            answer_ids=list(row.answer_ids),
            object_tokens=[[next(positions) for _ in range(count)] for count in row.token_counts],
        )

    def _open(self, path: str, width: int, height: int) -> Image.Image:
        with self._timed("images"):
            # named as in the manifest: the reason goes into the cache, and the data root may be moved before a resume
            return open_image(self.config.data_root / path, (width, height), name=path)

    def _place(
        self,
        arrays: dict[str, np.ndarray],
        unit: int,
        rows: list[PlanRow],
        fields: dict[str, np.ndarray],
        failures: list[dict[str, Any]],
    ) -> list[PlanRow]:
        """Copy the batch's results to the slots that the plan gave them; a sample with inf or nan fails instead."""
        done = {"slot": 0, "token_slot": 0, "answer_slot": 0}
        placed = []
        for row in rows:
            counts = {"slot": row.objects, "token_slot": sum(row.token_counts), "answer_slot": len(row.answer_ids)}
            parts = {name: fields[name][done[kind] : done[kind] + counts[kind]] for name, kind in SLOTS_OF.items()}
            if bad := [name for name, part in parts.items() if not np.isfinite(part).all()]:
                reason = f"inf or nan in the LMM's {', '.join(bad)} with {self.config.dtype}: give another --dtype"
                failures.append({"sample": row.sample, "reason": reason})
            else:
                placed.append(row)
                for name, part in parts.items():
                    start = getattr(row, SLOTS_OF[name]) - unit * len(arrays[name])
                    arrays[name][start : start + len(part)] = part
            for kind, count in counts.items():
                done[kind] += count
        return placed

    def _commit(
        self, store: Store, unit: int, arrays: dict[str, np.ndarray], failures: list[dict[str, Any]]
    ) -> dict[str, Any]:
        with self._timed("write"):
            store.write_unit(unit, arrays, {"failures": failures})
        return {"bytes": sum(a.nbytes for a in arrays.values()), "failures": failures}

    def _timed(self, part: str) -> _Timer:
        return _Timer(self.seconds, part)


SAM_BATCH: Final = 8
SLOTS_OF: Final = {  # array -> the field of the plan's row that says where a sample begins in it
    "attention": "slot",
    "attention_mass": "slot",
    "hidden": "token_slot",
    "hidden_scale": "token_slot",
    "answer_hidden": "answer_slot",
    "answer_scale": "answer_slot",
}


class _Timer:
    def __init__(self, seconds: defaultdict[str, float], part: str):
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.start


def _empty_unit(store: Store) -> dict[str, np.ndarray]:
    return {name: np.zeros(spec.unit_shape, spec.dtype) for name, spec in store.meta.arrays.items()}


def _batches(rows: Rows, unit: int) -> Iterator[list[PlanRow]]:
    """The plan's batches of a unit, in order."""
    members = np.flatnonzero(rows.numbers("unit") == unit)
    numbers = rows.numbers("batch")[members]
    for number in np.unique(numbers):
        yield [rows.row(int(index)) for index in members[numbers == number]]
