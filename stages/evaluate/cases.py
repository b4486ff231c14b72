"""Single cases to look at: objects and conversations, computed once more for their masks; images are opened here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from manifests.errors import DatasetError
from manifests.masks import decode
from manifests.schema import Sample
from stages.evaluate.assignment import best_pairs
from stages.evaluate.conversations import COLOURS, Caption, ConversationCase
from stages.evaluate.gcg import GcgResult
from stages.evaluate.keywords import words_of
from stages.evaluate.metrics import iou
from stages.evaluate.pictures import Case, choose_cases, pick
from stages.evaluate.results import ObjectResult
from stages.evaluate.scoring import Outcome, choose_phrases, phrase_masks
from stages.extract.images import open_image
from stages.train_head.data import PriorsLike, as_box, read_batch
from stages.train_head.heads.base import Head, crop_resize, to_image_masks

T = TypeVar("T")


@torch.no_grad()
def draw_cases(
    head: Head, priors: PriorsLike, objects: Sequence[ObjectResult], data_root: Path, *, each: int = 2
) -> list[Case]:
    """Best, median, worst and random objects; those whose image is not there are left out."""
    chosen = choose_cases(objects, each)
    return _those_with_images(partial(_case, head, priors, kind, objects[row], data_root) for kind, row in chosen)


def _those_with_images(makers: Iterable[Callable[[], T]]) -> list[T]:
    """What can be made; DatasetError, the first one, if that is nothing."""
    made, missing = [], []
    for make in makers:
        try:
            made.append(make())
        except DatasetError as error:
            missing.append(error)
    if missing and not made:
        raise missing[0]
    return made


def _case(head: Head, priors: PriorsLike, kind: str, result: ObjectResult, data_root: Path) -> Case:
    item, sample = result.number, priors.samples[result.sample]
    batch = read_batch(priors, [result.sample], head)
    assert batch is not None, "failed samples are not drawn"
    logits = to_image_masks(head(batch.inputs), batch.inputs)[0]
    coarse = (logits.coarse[item] > 0).cpu().numpy()
    refined = coarse if logits.refined is None else (logits.refined[item] > 0).cpu().numpy()
    size = (sample.height, sample.width)
    attention = crop_resize(batch.inputs.attention[item].mean(0, keepdim=True), as_box(batch.items[0].box), size)
    return Case(
        image=_image(sample, data_root),
        truth=decode(sample.objects[item].mask),
        refined=refined,
        coarse=None if logits.refined is None else coarse,
        attention=attention[0].numpy(),
        caption=f"{sample.prompt} – {sample.reply.text}" if sample.reply else result.phrase,
        iou=_iou(result.intersection, result.union),
        coarse_iou=None if logits.refined is None else _iou(result.coarse_intersection, result.coarse_union),
        kind=kind,
    )


@torch.no_grad()
def draw_conversations(
    head: Head, priors: PriorsLike, outcome: Outcome, data_root: Path, *, lam: float, each: int = 2
) -> list[ConversationCase]:
    """The LMM's own captions with the best, median and worst mean IoU of their true phrases, and some at random."""
    drawable = [r for r in outcome.conversations if not r.failed] if outcome.selects else []
    quality = np.array([r.ious.max(0, initial=0).mean() for r in drawable])
    chosen = [(kind, drawable[k]) for kind, k in pick(quality, [r.image_id for r in drawable], each)]
    wanted = {result.sample_id for _, result in chosen}
    rows = {name: row for row, name in enumerate(priors.samples.ids()) if name in wanted} if wanted else {}
    return _those_with_images(
        partial(_conversation, head, priors, kind, rows[r.sample_id], r, data_root, lam) for kind, r in chosen
    )


def _conversation(
    head: Head, priors: PriorsLike, kind: str, row: int, result: GcgResult, data_root: Path, lam: float
) -> ConversationCase:
    """A phrase that agrees best with a true one has its number."""
    sample, item = priors.samples[row], priors.read(row)
    assert item is not None and sample.reply is not None, "failed samples are not drawn"
    found = choose_phrases(head, priors, row, item, "cpu", lam)
    assert found is not None, "without a selector there is no conversation"
    phrases, _ = found
    masks = phrase_masks(head, priors, row, item, phrases, "cpu")
    truths = len(sample.objects)
    number = {p: t for p, t in best_pairs(result.ious) if result.ious[p, t] > 0}
    others = _other_colours(truths, {t % len(COLOURS) for t in number.values()})
    numbers = [number[k] if k in number else next(others) for k in range(len(phrases))]
    words = sample.reply.text.split()
    owner = np.full(len(words), -1)
    for k, phrase in zip(numbers, phrases, strict=True):
        owner[phrase] = k
    return ConversationCase(
        image=_image(sample, data_root),
        reply=Caption(words=tuple(words), phrases=tuple(owner.tolist()), masks=dict(zip(numbers, masks, strict=True))),
        reference=_reference(sample),
        kind=kind,
        note=f"mean IoU of the true phrases {100 * result.ious.max(0, initial=0).mean():.0f}",
    )


def _iou(intersection: int, union: int) -> float:
    return float(iou(np.array(intersection), np.array(union)))


def _other_colours(start: int, taken: set[int]) -> Iterator[int]:
    """Numbers from `start` on whose colours are none of those of matched phrases, while there are such colours."""
    return (n for n in count(start) if n % len(COLOURS) not in taken or len(taken) == len(COLOURS))


def _reference(sample: Sample) -> Caption:
    words, labels = words_of(sample.pieces)
    objects = [-1 if k < 0 else sample.pieces[k].object for k in labels.tolist()]
    return Caption(
        words=words,
        phrases=tuple(-1 if k is None else k for k in objects),
        masks={number: decode(item.mask) for number, item in enumerate(sample.objects)},
    )


def _image(sample: Sample, data_root: Path) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.asarray(open_image(data_root / sample.image_path, (sample.width, sample.height)))
