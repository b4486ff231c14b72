"""What a worker is told, and a unit on its way through it: shared by the two kinds of units."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cache.places import Place
from cache.store import Store
from manifests.errors import PipelineError
from stages.extract.attention import Merge
from stages.extract.images import open_image
from stages.extract.presets import LMMPreset
from stages.extract.stopwatch import Stopwatch


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

    cache: Place
    images: Place
    data_root: Path
    lmm: LMMPreset
    dtype: str
    merge: Merge
    sam: str
    sam_checkpoint: Path | None
    device: str
    gpus: int
    """GPUs of this worker, 0 on the CPU; more than one: the LMM's layers are spread over them."""
    threads: int
    """CPU threads of torch."""

    def open(self, path: str, size: tuple[int, int], sha256: str) -> Image.Image:
        """An image of the data root, `size` (width, height) pixels, with the content that was planned.

        DatasetError where it can not be used; PipelineError if it is another one by now, for then the plan is wrong,
        not the sample; OSError if it can not be read now.
        """
        try:
            data = (self.data_root / path).read_bytes()
        except FileNotFoundError:
            raise PipelineError(
                f"{path} is not in {self.data_root}, where it was when this was planned: put it back, check "
                "--data-root, or plan anew with --overwrite"
            ) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PipelineError(
                f"{path} in {self.data_root} is not the image that was planned (its sha256 differs): put that one "
                "back, check --data-root, or plan anew with --overwrite"
            )
        # named as in the manifest: the reason goes into the cache, and the data root may be moved before a resume
        return open_image(io.BytesIO(data), size, name=path)

    def pinned(self, values: Tensor) -> Tensor:
        """Where a GPU fetches it from by itself."""
        return values.pin_memory() if self.gpus else values


@dataclass(kw_only=True, slots=True)
class Work:
    """A unit on its way: what was read, then what was computed, and what failed."""

    number: int
    watch: Stopwatch
    batches: list[Any] = field(default_factory=list)
    """One forward pass each; every batch has `rows`."""
    computed: list[dict[str, Tensor]] = field(default_factory=list)
    """For each batch the cache's fields, on the host."""
    failures: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, store: Store, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write the unit, then its commit record."""
        store.write_unit(self.number, arrays, {"failures": self.failures})
        return {"bytes": sum(a.nbytes for a in arrays.values())}


def empty_unit(store: Store) -> dict[str, np.ndarray]:
    """The arrays of a unit, zeros."""
    return {name: np.zeros(spec.unit_shape, spec.dtype) for name, spec in store.meta.arrays.items()}
