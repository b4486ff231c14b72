"""Units of the image cache: SAM's embeddings, 8 images in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cache.checks import all_finite
from cache.plan import ImageRows
from cache.store import Store
from manifests.errors import DatasetError
from stages.extract.images import pad_bottom_right
from stages.extract.sam import encode_images, load_sam, normalise_sam, sam_config
from stages.extract.stored import to_host
from stages.extract.work import Work, WorkerConfig, empty_unit

SAM_BATCH: Final = 8


@dataclass(kw_only=True, slots=True)
class _Images:
    """Rows of the image cache and their pixels, uint8 [height, width, 3]."""

    rows: list[int]
    pixels: list[Tensor]


class ImageUnits:
    """The three steps of such a unit."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        self.size = sam_config(config.sam).image_size

    @cached_property
    def store(self) -> Store:
        return Store.open(self.config.images)

    @cached_property
    def rows(self) -> ImageRows:
        return ImageRows(self.store.file("rows.parquet"))

    @cached_property
    def model(self) -> Any:
        """SAM."""
        sam = load_sam(self.config.sam, self.config.sam_checkpoint)
        return sam.requires_grad_(False).to(self.config.device)

    def read(self, work: Work) -> None:
        rows = np.flatnonzero(self.rows.numbers("unit") == work.number).tolist()
        for start in range(0, len(rows), SAM_BATCH):
            batch = _Images(rows=[], pixels=[])
            for row in rows[start : start + SAM_BATCH]:
                planned = self.rows[row]
                try:
                    image = self.config.open(planned.path, (planned.width, planned.height), planned.image)
                except DatasetError as error:
                    work.failures.append({"image": row, "reason": str(error)})
                    continue
                pixels, _ = pad_bottom_right(image.convert("RGB"), self.size)
                batch.rows.append(row)
                batch.pixels.append(self.config.pinned(torch.from_numpy(pixels)))
            if batch.rows:
                work.batches.append(batch)

    def compute(self, work: Work, batch: _Images) -> dict[str, Tensor]:
        return {"embedding": torch.cat(self._embeddings(work, batch.pixels))}

    def synchronise(self) -> None:
        """Wait for the GPU, if there is one."""
        if self.config.gpus:
            torch.cuda.synchronize(self.config.device)

    def write(self, work: Work) -> dict[str, Any]:
        arrays = empty_unit(self.store)
        first = work.number * len(arrays["embedding"])
        written = 0
        for batch, fields in zip(work.batches, work.computed, strict=True):
            for row, embedding in zip(batch.rows, fields["embedding"].numpy(), strict=True):
                if all_finite(embedding):
                    arrays["embedding"][self.rows[row].slot - first] = embedding
                    written += 1
                else:
                    reason = "inf or nan in SAM's embedding: give another --sam"
                    work.failures.append({"image": row, "reason": reason})
        return work.commit(self.store, arrays) | {"images": written}

    def smaller(self, size: int) -> str:
        """The cure where a single image does not fit."""
        return "a smaller --sam, or a --device with more"

    def _embeddings(self, work: Work, pixels: list[Tensor]) -> list[Tensor]:
        """SAM's embeddings on the host; where they do not fit together, half of them at a time."""
        try:
            return [self._embedding(work, pixels)]
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        return self._embeddings(work, pixels[:half]) + self._embeddings(work, pixels[half:])

    def _embedding(self, work: Work, pixels: list[Tensor]) -> Tensor:
        batch = normalise_sam(pixels, self.size, self.config.device)
        with work.watch.device("sam"):
            embeddings = encode_images(self.model, batch)
        return to_host(embeddings.half())
