"""The plan: before any model is loaded, every sample is tokenised on the CPU and given its unit, slots and batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cache.layout import ArraySpec
from cache.plan import IMAGE_SCHEMA, columns_table, image_arrays, list_column, pack, priors_arrays
from manifests.schema import Sample
from stages.extract.checkpoint import file_sha256
from stages.extract.images import corner_box
from stages.extract.presets import LMMPreset
from stages.extract.sam import SamConfig
from stages.extract.texts import Texts, TextToIds

SHARD_BYTES: Final = 64 << 20
LARGEST_UNIT: Final = 128  # objects or images; so that a tiny LMM's cache has units enough to share among workers
CHUNK_BYTES: Final = 64 << 10  # of token arrays, whose slots are small


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows and arrays of both caches. Samples that can not be used have an error in their row and no slots."""

    rows: pa.Table
    """ROW_SCHEMA, a row per sample."""
    units: int
    arrays: list[ArraySpec]
    image_rows: pa.Table
    """IMAGE_SCHEMA, a row per image."""
    image_units: int
    image_arrays: list[ArraySpec]
    padding: int
    """Object slots that no object uses."""
    batch_size: int
    """Samples of a forward pass."""

    @property
    def objects(self) -> int:
        return int(self.objects_of_units.sum())

    @property
    def objects_of_units(self) -> np.ndarray:
        """int64 [units]"""
        unit, objects = (self.rows.column(name).to_numpy() for name in ("unit", "objects"))
        placed = unit >= 0
        return np.bincount(unit[placed], objects[placed], self.units).astype(np.int64)

    @property
    def images_of_units(self) -> np.ndarray:
        """int64 [image_units]"""
        return np.bincount(self.image_rows.column("unit").to_numpy(), minlength=self.image_units)

    @property
    def priors_bytes(self) -> int:
        """Bytes of all arrays, payload only (checksums and indices add about 0.1 %)."""
        return sum(_array_bytes(spec) for spec in self.arrays) * self.units

    @property
    def image_bytes(self) -> int:
        return sum(_array_bytes(spec) for spec in self.image_arrays) * self.image_units

    @property
    def failures(self) -> list[dict[str, Any]]:
        """[{"sample": index, "reason": text}] of the samples that can not be used."""
        errors = self.rows.column("error").combine_chunks()
        failed = np.flatnonzero(np.asarray(errors.is_valid()))
        return [{"sample": int(index), "reason": errors[index].as_py()} for index in failed]


def _array_bytes(spec: ArraySpec) -> int:
    return math.prod((spec.slots_per_unit, *spec.item_shape)) * (2 if spec.dtype == "float16" else 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What the samples' images are in the image cache."""

    row_of: dict[str, int]
    """Row of each image path."""
    rows: pa.Table
    """IMAGE_SCHEMA"""
    missing: dict[str, str]
    """Why an image path can not be used."""

    def among(self, known: pa.Table) -> Images | None:
        """The same images as rows of another table; None where it does not hold them all."""
        place = pc.index_in(self.rows.column("image"), known.column("image").combine_chunks())
        if place.null_count:
            return None
        places = place.to_pylist()
        return replace(self, rows=known, row_of={path: places[row] for path, row in self.row_of.items()})


def plan_images(
    samples: Iterable[Sample],
    data_root: Path,
    sam: SamConfig,
    *,
    hashed: bool = True,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda paths: paths,
) -> Images:
    """One row per different image content.

    Reasons are part of the plan: their paths are relative to `data_root`, which may be moved before a resume.
    hashed=False (dry runs): the path stands for the content, so that nothing but the manifest is read.
    """
    sizes = {s.image_path: (s.width, s.height) for s in samples}
    found = Images(row_of={}, rows=pa.table({}), missing={})
    first: dict[str, str] = {}  # digest -> the first path of that content
    for path in progress(sizes):
        try:
            digest = file_sha256(data_root / path) if hashed else path
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:  # others may be gone tomorrow
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"can not be read ({error.strerror})"
            found.missing[path] = f"{path} {reason}: put the image into the data root and plan again"
            continue
        found.row_of[path] = found.row_of[first[digest]] if digest in first else len(first)
        first.setdefault(digest, path)
    return replace(found, rows=_image_table(first, sizes, sam))


def _image_table(paths: dict[str, str], sizes: dict[str, tuple[int, int]], sam: SamConfig) -> pa.Table:
    """IMAGE_SCHEMA of images, in order. paths: of each content's digest; sizes: (width, height) of each path."""
    size = [sizes[path] for path in paths.values()]
    slots = np.arange(len(paths))
    boxes = np.array([corner_box(*each, sam.image_size).as_tuple() for each in size], np.int32).reshape(-1, 5)
    columns = {
        "image": list(paths),
        "path": list(paths.values()),
        "height": [height for _, height in size],
        "width": [width for width, _ in size],
        "unit": slots // images_per_unit(sam),
        "slot": slots,
        "box": list_column(np.full(len(paths), 5), boxes.ravel()),
    }
    return columns_table(columns, IMAGE_SCHEMA)


def images_per_unit(sam: SamConfig) -> int:
    return _per_unit(2 * sam.channels * sam.grid**2)


def make_plan(
    samples: Sequence[Sample],
    text: TextToIds,
    lmm: LMMPreset,
    sam: SamConfig,
    images: Images,
    *,
    batch_size: int | Callable[[Sample], int],
) -> Plan:
    """Lay out every sample. `images`: of `plan_images`, or of the image cache that is used again.

    batch_size: samples of a forward pass, or what finds that out with the longest sample.
    The samples are read once, in order (and the longest one again); what is kept of each are numbers in columns.
    """
    texts = Texts(text, lmm.grid, images.row_of, images.missing)
    for sample in samples:
        texts.add(sample)
    counts = texts.counts()
    per_unit = max(_per_unit(lmm.object_bytes), int(counts[:, 0].max(initial=0)))  # a sample lies in one unit
    chunks = {
        "token_chunk": max(1, CHUNK_BYTES // (2 * lmm.layers * lmm.width)),
        "answer_chunk": max(1, CHUNK_BYTES // (2 * lmm.width)),
    }
    packing = pack(counts, objects_per_unit=per_unit, errors=texts.errors, **chunks)
    lengths = np.array(texts.lengths, np.int64)
    if not isinstance(batch_size, int):
        batch_size = batch_size(samples[int(lengths.argmax())]) if packing.units else 1
    batch, length = batches(packing.unit, lengths, batch_size)
    places = {"unit": packing.unit, "batch": batch, "length": length}
    places |= {"slot": packing.slot, "token_slot": packing.token_slot, "answer_slot": packing.answer_slot}
    return Plan(
        rows=texts.table(places),
        units=packing.units,
        arrays=priors_arrays(
            packing, channels=lmm.channels, grid=lmm.grid, layers=lmm.layers, width=lmm.width, **chunks
        ),
        image_rows=images.rows,
        image_units=-(-len(images.rows) // images_per_unit(sam)),
        image_arrays=image_arrays(channels=sam.channels, side=sam.grid, images_per_unit=images_per_unit(sam)),
        padding=packing.padding[0],
        batch_size=batch_size,
    )


def _per_unit(item_bytes: int) -> int:
    """Objects or images of a unit: a shard of about SHARD_BYTES."""
    return max(1, min(LARGEST_UNIT, SHARD_BYTES // item_bytes))


def batches(unit: np.ndarray, lengths: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a unit run together with those of similar length.

    unit: int64 [samples], ascending, -1 for samples without one.  lengths: int64 [samples], tokens of the whole input.
    Returns int64 [samples] twice: the number of the batch inside the unit (else -1), its padded length (else 0).
    """
    batch, padded = np.full(len(unit), -1), np.zeros(len(unit), np.int64)
    order = np.lexsort((lengths, unit))  # stable: samples of one length stay in order
    order = order[unit[order] >= 0]
    if not len(order):
        return batch, padded
    units = unit[order]
    rank = np.arange(len(order)) - np.searchsorted(units, units)
    number = rank // batch_size
    starts = np.flatnonzero(rank % batch_size == 0)
    longest = np.maximum.reduceat(lengths[order], starts)
    batch[order] = number
    padded[order] = np.repeat(longest, np.diff(np.append(starts, len(order))))
    return batch, padded
