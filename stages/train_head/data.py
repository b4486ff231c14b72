"""From the cache to batches of a head: collate samples, and read the next batches while one is trained on."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cache.priors import SamplePriors
from manifests.manifest import Samples
from manifests.masks import decode
from manifests.schema import CAPTIONS
from stages.extract.images import Box
from stages.train_head.heads.base import Head, HeadBatch
from stages.train_head.targets import Targets, frame_targets

T = TypeVar("T")


class PriorsLike(Protocol):
    """What training and evaluation need of a cache; `cache.priors.Priors` is one."""

    failures: dict[int, str]

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def samples(self) -> Samples: ...

    def read(self, index: int) -> SamplePriors | None: ...

    def embedding(self, index: int) -> np.ndarray: ...

    def advise(self, indices: Iterable[int]) -> None: ...

    def image_box(self, index: int) -> tuple[int, int, int, int, int]: ...


def splits_of(priors: PriorsLike) -> str:
    """The splits that a cache has, for messages: "train, val"."""
    return ", ".join(priors.samples.labels("split")) or "none"


@dataclass(kw_only=True, slots=True)
class Batch:
    """Samples of one step: `indices` into the manifest, what the head looks at, the priors they came from."""

    indices: list[int]
    items: list[SamplePriors]
    inputs: HeadBatch


def as_box(values: Sequence[int]) -> Box:
    """(top, left, height, width, size) as the cache keeps it."""
    top, left, height, width, size = (int(v) for v in values)
    return Box(top=top, left=left, height=height, width=width, size=size)


def read_batch(priors: PriorsLike, indices: Sequence[int], head: Head, device: str = "cpu") -> Batch | None:
    """The batch of these samples for a head; those that failed in extraction are left out; None if nothing is left."""
    found = [(i, item) for i in indices if (item := priors.read(i)) is not None]
    return batch_of(priors, found, head, device) if found else None


def batch_of(priors: PriorsLike, found: Sequence[tuple[int, SamplePriors]], head: Head, device: str = "cpu") -> Batch:
    """The batch of these samples (at least one), with the priors that were read of each, for a head.

    It has the maps that the head looks at, and SAM's embeddings if it refines.
    device: where it will go. What a GPU gets is as in the cache, mostly float16, and in pinned memory: it fetches that
    by itself, and `HeadBatch.to` makes numbers of it there.

    answer_hidden holds the tokens of captions only: the keyword selector learns from texts in which some words name
    an object and others do not; in referring expressions all of them do.
    """
    embeddings, maps, gpu = head.refined_size is not None, head.shape.maps, device.startswith("cuda")
    kept, items = [i for i, _ in found], [item for _, item in found]
    samples = [priors.samples[i] for i in kept]
    counts = [len(item.attention) for item in items]
    starts = np.cumsum([0, *counts[:-1]])
    width = items[0].answer_hidden.shape[-1]
    answers = [item.answer_hidden for item, s in zip(items, samples, strict=True) if s.task in CAPTIONS]
    inputs = HeadBatch(
        attention=_gathered([item.attention if maps is None else item.attention[:, maps] for item in items], device),
        hidden=_gathered([item.scaled_hidden if gpu else item.hidden for item in items], device),
        hidden_scale=_gathered([item.hidden_scale for item in items], device) if gpu else None,
        hidden_object=torch.from_numpy(
            np.concatenate([item.hidden_object + start for item, start in zip(items, starts, strict=True)])
        ),
        sample_of_object=torch.repeat_interleave(torch.tensor(counts)),
        answer_hidden=torch.from_numpy(np.concatenate([np.zeros((0, width), np.float32), *answers])),
        lmm_boxes=[as_box(item.box) for item in items],
        image_sizes=[(s.height, s.width) for s in samples],
        embeddings=_gathered([priors.embedding(i)[None] for i in kept], device) if embeddings else None,
        sam_boxes=[as_box(priors.image_box(i)) for i in kept] if embeddings else None,
    )
    return Batch(indices=kept, items=items, inputs=inputs)


def _gathered(arrays: list[np.ndarray], device: str) -> Tensor:
    """Arrays, joined along their first axis: float32, or for a GPU of the type they have, in pinned memory."""
    if not device.startswith("cuda"):
        return torch.from_numpy(np.concatenate(arrays)).float()
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    joined = torch.empty(shape, dtype=getattr(torch, arrays[0].dtype.name), pin_memory=True)
    np.concatenate(arrays, out=joined.numpy())
    return joined


def targets_of(priors: PriorsLike, batch: Batch, head: Head) -> Targets:
    """Masks of the batch's objects in the frames of the head's outputs, and its keywords."""
    samples = [priors.samples[i] for i in batch.indices]
    masks = [np.stack([decode(o.mask) for o in s.objects]) for s in samples]
    coarse = frame_targets(masks, batch.inputs.lmm_boxes, head.coarse_size(batch.inputs.attention.shape[-1]))
    refined = None
    if head.refined_size is not None and batch.inputs.sam_boxes is not None:
        refined = frame_targets(masks, batch.inputs.sam_boxes, head.refined_size)
    named = [item.answer_object >= 0 for item, s in zip(batch.items, samples, strict=True) if s.task in CAPTIONS]
    return Targets(
        coarse=coarse, refined=refined, keyword=torch.from_numpy(np.concatenate([np.zeros(0, bool), *named]))
    )


def prefetch(jobs: Iterable[Callable[[], T]], *, threads: int = 1, depth: int = 4) -> Iterator[T]:
    """The jobs' results in order, made up to `depth` ahead by so many threads; an error is raised in its place."""
    waiting: deque[Future[T]] = deque()
    before = sys.getswitchinterval()
    if threads > 1:
        # What launches a GPU's kernels lets the interpreter go at each of them, and then waits for its turn. At 5 ms a
        # turn, a few readers would hold up a step for longer than it takes.
        sys.setswitchinterval(1e-4)
    # A second team of OpenMP threads would outnumber the cores, and then every barrier of either team sleeps:
    # on two cores that made a training step 1.5 times as long.
    with ThreadPoolExecutor(threads, "prefetch", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            sys.setswitchinterval(before)
