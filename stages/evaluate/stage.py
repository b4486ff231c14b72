"""Stage 3: what a head did on held-out samples -> every protocol's numbers, and pictures of single cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifests.masks import decode
from manifests.schema import CAPTIONS
from stages.evaluate.baselines import Lexicon, NounPhrases
from stages.evaluate.keywords import summarise_chooser, summarise_keywords, sweep_keywords, words_of
from stages.evaluate.measures import Measure
from stages.evaluate.pictures import Case, choose_cases
from stages.evaluate.png import summarise_png
from stages.evaluate.reasonseg import summarise_reasonseg
from stages.evaluate.res import protocol_of, summarise_res
from stages.evaluate.results import ObjectResult, Which
from stages.evaluate.scoring import Outcome
from stages.extract.images import open_image
from stages.train_head.data import PriorsLike, as_box, read_batch
from stages.train_head.heads.base import Head, crop_resize, to_image_masks


def masks_measured(objects: Sequence[ObjectResult], head: Head, meta: dict[str, Any]) -> list[Measure]:
    """RES, PNG and ReasonSeg of the head's last masks, then of its coarse ones. meta: of the manifest."""
    kinds: tuple[Which, ...] = ("refined", "coarse") if head.refined_size is not None else ("coarse",)
    protocol = protocol_of(meta)
    return [
        measure
        for measures in (
            lambda which: summarise_res(objects, which, protocol=protocol),
            lambda which: summarise_png(objects, which),
            lambda which: summarise_reasonseg(objects, which),
        )
        for which in kinds
        for measure in measures(which)
    ]


def words_measured(outcome: Outcome, priors: PriorsLike, lam: float) -> list[Measure]:
    """Keywords: the selector at `lam` and over its range, and what chooses words without looking at the LMM."""
    train = priors.samples.where(split=["train"], task=CAPTIONS)
    lexicon = Lexicon.fit(words_of(priors.samples[i].pieces) for i in train)
    raise NotImplementedError(lexicon, summarise_chooser, summarise_keywords, sweep_keywords, NounPhrases)


@torch.no_grad()
def draw_cases(
    head: Head, priors: PriorsLike, objects: Sequence[ObjectResult], data_root: Path, *, each: int = 2
) -> list[Case]:
    """Best, median, worst and random objects, computed once more for their masks. Images are opened here only."""
    return [_case(head, priors, kind, objects[row], data_root) for kind, row in choose_cases(objects, each)]


def _case(head: Head, priors: PriorsLike, kind: str, result: ObjectResult, data_root: Path) -> Case:
    item, sample = result.number, priors.samples[result.sample]
    batch = read_batch(priors, [result.sample], head)
    assert batch is not None, "failed samples are not drawn"
    logits = to_image_masks(head(batch.inputs), batch.inputs)[0]
    coarse = (logits.coarse[item] > 0).cpu().numpy()
    refined = coarse if logits.refined is None else (logits.refined[item] > 0).cpu().numpy()
    size = (sample.height, sample.width)
    attention = crop_resize(batch.inputs.attention[item].mean(0, keepdim=True), as_box(batch.items[0].box), size)
    asked = f"{sample.prompt} – {sample.reply.text}" if sample.reply else result.phrase
    return Case(
        image=np.asarray(open_image(data_root / sample.image_path, (sample.width, sample.height))),
        truth=decode(sample.objects[item].mask),
        refined=refined,
        coarse=None if logits.refined is None else coarse,
        attention=attention[0].numpy(),
        caption=asked,
        iou=result.intersection / max(1, result.union),
        coarse_iou=None if logits.refined is None else result.coarse_intersection / max(1, result.coarse_union),
        kind=kind,
    )


def in_order(reports: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
    """What the workers report, in the order of the units: so that what follows is the same for any number."""
    waiting: dict[int, Outcome] = {}
    following = 0
    for report in reports:
        waiting[report["unit"]] = report["outcome"]
        while following in waiting:
            yield waiting.pop(following)
            following += 1
