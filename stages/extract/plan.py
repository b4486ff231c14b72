"""The plan: before any model is loaded, every sample is tokenised on the CPU and given its unit, slots and batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cache.layout import ArraySpec
from cache.plan import ImageRow, PlanRow, image_arrays, pack, priors_arrays
from manifests.schema import Sample, problem
from stages.extract.checkpoint import file_sha256
from stages.extract.grids import View
from stages.extract.grids.view import square_view
from stages.extract.images import centred_box, corner_box
from stages.extract.presets import LMMPreset
from stages.extract.processor import Answer, Prompt
from stages.extract.sam import SamConfig
from stages.extract.stored import stored_box

SHARD_BYTES: Final = 64 << 20
LARGEST_UNIT: Final = 128  # objects or images; so that a tiny LMM's cache has units enough to share among workers
CHUNK_BYTES: Final = 64 << 10  # of token arrays, whose slots are small


class TextToIds(Protocol):
    """What planning needs of an LMM (`stages.extract.processor.LMMProcessor`, or `WordCount` for estimates)."""

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt: ...

    def answer(self, sample: Sample) -> Answer: ...


class WordCount:
    """Estimates for a dry run where the LMM's processor is not on this machine: 1.4 tokens a word."""

    def __init__(self, preset: LMMPreset):
        self.preset = preset

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        height, width = self.preset.grid
        view = View(height=height, width=width, columns=range(height * width))
        if self.preset.square:
            view = square_view(view.columns, centred_box(*size, self.preset.square.image_size))
        ids = [0] * (height * width + round(1.4 * len(prompt.split())) + 8)
        return Prompt(ids=ids, views=(view,) * self.preset.views, types={})

    def answer(self, sample: Sample) -> Answer:
        ids: list[int] = []
        objects: list[int] = []
        for piece in sample.pieces:
            count = max(1, round(1.4 * len(piece.text.split())))
            ids += [0] * count
            objects += [-1 if piece.object is None else piece.object] * count
        return Answer(ids=ids, objects=objects, words=list(range(len(ids))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows and arrays of both caches. Samples that can not be used have an error in their row and no slots."""

    rows: list[PlanRow]
    units: int
    arrays: list[ArraySpec]
    image_rows: list[ImageRow]
    image_units: int
    image_arrays: list[ArraySpec]
    padding: int
    """Object slots that no object uses."""
    batch_size: int
    """Samples of a forward pass."""

    @property
    def objects(self) -> int:
        return sum(row.objects for row in self.rows if row.error is None)

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
        return [{"sample": row.sample, "reason": row.error} for row in self.rows if row.error is not None]


def _array_bytes(spec: ArraySpec) -> int:
    return math.prod((spec.slots_per_unit, *spec.item_shape)) * (2 if spec.dtype == "float16" else 4)


def plan_images(
    samples: Sequence[Sample],
    data_root: Path,
    sam: SamConfig,
    *,
    hashed: bool = True,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda paths: paths,
) -> tuple[dict[str, int], list[ImageRow], dict[str, str]]:
    """One row per different image content: (row of each image path, the rows, reasons of images that are missing).

    Reasons are part of the plan: their paths are relative to `data_root`, which may be moved before a resume.
    hashed=False (dry runs): the path stands for the content, so that nothing but the manifest is read.
    """
    sizes = {s.image_path: (s.width, s.height) for s in samples}
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    for path in progress(sizes):
        try:
            digests[path] = file_sha256(data_root / path) if hashed else path
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"can not be read ({error.strerror})"
            missing[path] = f"{path} {reason}: put the image into the data root and plan again"
    per_unit = _per_unit(2 * sam.channels * sam.grid**2)
    rows: list[ImageRow] = []
    index_of: dict[str, int] = {}
    for path, digest in digests.items():
        if digest not in index_of:
            index_of[digest] = len(rows)
            width, height = sizes[path]
            box = corner_box(width, height, sam.image_size).as_tuple()
            slot = len(rows)
            rows.append(
                ImageRow(image=digest, path=path, height=height, width=width, unit=slot // per_unit, slot=slot, box=box)
            )
    return {path: index_of[digest] for path, digest in digests.items()}, rows, missing


def make_plan(
    samples: Sequence[Sample],
    text: TextToIds,
    lmm: LMMPreset,
    sam: SamConfig,
    images: tuple[dict[str, int], list[ImageRow], dict[str, str]],
    *,
    batch_size: int | Callable[[Sample], int],
) -> Plan:
    """Lay out every sample. `images`: of `plan_images`, or of the image cache that is used again.

    batch_size: samples of a forward pass, or what finds that out with the longest sample.
    """
    image_of, image_rows, missing = images
    answers, tokens, prompts, errors = _texts(samples, text, missing)
    largest = max((len(s.objects) for s, error in zip(samples, errors, strict=True) if not error), default=0)
    per_unit = max(_per_unit(lmm.object_bytes), largest)  # a sample lies in one unit, whatever its objects take
    chunks = {
        "token_chunk": max(1, CHUNK_BYTES // (2 * lmm.layers * lmm.width)),
        "answer_chunk": max(1, CHUNK_BYTES // (2 * lmm.width)),
    }
    counts = [(len(s.objects), sum(map(len, t)), len(a.ids)) for s, a, t in zip(samples, answers, tokens, strict=True)]
    packing = pack(counts, objects_per_unit=per_unit, errors=errors, **chunks)
    lengths = [len(p.ids) + len(a.ids) if p else 0 for p, a in zip(prompts, answers, strict=True)]
    if not isinstance(batch_size, int):
        usable = [i for i, error in enumerate(packing.errors) if error is None]
        batch_size = batch_size(samples[max(usable, key=lambda i: lengths[i])]) if usable else 1
    batches = _batches(packing.unit.tolist(), lengths, batch_size)
    rows = []
    for i, (sample, answer, positions, prompt) in enumerate(zip(samples, answers, tokens, prompts, strict=True)):
        if (error := packing.errors[i]) is not None or prompt is None:
            rows.append(PlanRow(sample=i, error=error))
            continue
        rows.append(
            PlanRow(
                sample=i,
                unit=int(packing.unit[i]),
                batch=batches[i][0],
                length=batches[i][1],
                slot=int(packing.slot[i]),
                objects=len(sample.objects),
                token_slot=int(packing.token_slot[i]),
                token_counts=tuple(map(len, positions)),
                token_positions=tuple(p for group in positions for p in group),
                answer_slot=int(packing.answer_slot[i]),
                answer_ids=tuple(answer.ids),
                answer_word=tuple(answer.words),
                answer_object=tuple(answer.objects),
                image=image_of[sample.image_path],
                box=stored_box(prompt.views[-1], lmm.grid),
            )
        )
    images_per_unit = _per_unit(2 * sam.channels * sam.grid**2)
    return Plan(
        rows=rows,
        units=packing.units,
        arrays=priors_arrays(
            packing, channels=lmm.channels, grid=lmm.grid, layers=lmm.layers, width=lmm.width, **chunks
        ),
        image_rows=image_rows,
        image_units=-(-len(image_rows) // images_per_unit),
        image_arrays=image_arrays(channels=sam.channels, side=sam.grid, images_per_unit=images_per_unit),
        padding=packing.padding[0],
        batch_size=batch_size,
    )


def _per_unit(item_bytes: int) -> int:
    """Objects or images of a unit: a shard of about SHARD_BYTES."""
    return max(1, min(LARGEST_UNIT, SHARD_BYTES // item_bytes))


def _texts(samples: Sequence[Sample], text: TextToIds, missing: dict[str, str]) -> tuple[list[Any], ...]:
    """Of every sample: its answer, the positions of each object's tokens, its prompt, and why it can not be used."""
    answers = [text.answer(s) for s in samples]
    tokens = [a.tokens_of(len(s.objects)) for a, s in zip(answers, samples, strict=True)]
    prompts, refused = _prompts(samples, text)
    errors = [
        problem(s) or missing.get(s.image_path) or _untokenised(s, t) or refused.get((s.width, s.height))
        for s, t in zip(samples, tokens, strict=True)
    ]
    return answers, tokens, prompts, errors


def _prompts(samples: Sequence[Sample], text: TextToIds) -> tuple[list[Prompt | None], dict[tuple[int, int], str]]:
    """Each sample's prompt; None and a reason by (width, height) for sizes that the LMM's processor refuses."""
    refused: dict[tuple[int, int], str] = {}
    prompts: list[Prompt | None] = []
    for sample in samples:
        size = (sample.width, sample.height)
        try:
            prompts.append(None if size in refused else text.prompt(sample.prompt, size))
        except ValueError as error:  # such as Qwen's limit on the aspect ratio
            refused[size] = f"the LMM takes no image of {size[0]}x{size[1]} pixels ({error}): leave it out"
            prompts.append(None)
    return prompts, refused


def _untokenised(sample: Sample, tokens: list[list[int]]) -> str | None:
    empty = [o.phrase for o, positions in zip(sample.objects, tokens, strict=True) if not positions]
    return f"the phrase {empty[0]!r} has no tokens: give it words" if empty else None


def _batches(units: list[int], lengths: list[int], batch_size: int) -> dict[int, tuple[int, int]]:
    """Sample -> (number of its batch inside the unit, padded length): samples of similar length run together."""
    by_unit: defaultdict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        if unit >= 0:
            by_unit[unit].append(index)
    found: dict[int, tuple[int, int]] = {}
    for members in by_unit.values():
        members.sort(key=lambda i: (lengths[i], i))
        for number, start in enumerate(range(0, len(members), batch_size)):
            batch = members[start : start + batch_size]
            longest = max(lengths[i] for i in batch)
            found |= dict.fromkeys(batch, (number, longest))
    return found
