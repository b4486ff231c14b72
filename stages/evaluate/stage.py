"""Stage 3: a trained head on the cached priors of held-out samples -> the protocols' numbers and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifests.errors import DatasetError
from manifests.masks import area, decode
from manifests.schema import Object, Sample
from stages.evaluate.baselines import Lexicon, NounPhrases
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.keywords import (
    KeywordRow,
    WordResult,
    summarise_chooser,
    summarise_keywords,
    sweep_keywords,
    word_scores,
)
from stages.evaluate.keywords import words_of as words_in
from stages.evaluate.metrics import intersection_union
from stages.evaluate.pictures import Case, choose_cases
from stages.evaluate.png import summarise_png
from stages.evaluate.res import summarise_res
from stages.evaluate.results import ObjectResult, Which, by_split
from stages.evaluate.rows import as_measures
from stages.extract.images import open_image
from stages.train_head.data import PriorsLike, as_box, prefetch, read_batch, splits_of
from stages.train_head.heads.base import Head, ImageLogits, crop_resize, to_image_masks


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a head did on some samples: one record per object, one per narrative, and the seconds it took."""

    referring: list[ObjectResult]
    narrative: list[ObjectResult]
    words: list[WordResult]
    failures: dict[str, str]
    seconds: float


def held_out(priors: PriorsLike, splits: Sequence[str] | None = None) -> list[int]:
    """Samples to evaluate: those of the given splits, by default all but `train`."""
    known = priors.samples.labels("split")
    if unknown := set(splits or ()) - set(known):
        raise DatasetError(
            f"--splits {' '.join(sorted(unknown))}: the cache has no such split; its splits are {splits_of(priors)}"
        )
    chosen = priors.samples.where(split=set(known) - {"train"} if splits is None else splits)
    if not chosen:
        raise DatasetError(
            f"the cache has no sample to evaluate; its splits are {splits_of(priors)}: name one with --splits"
        )
    return chosen


@torch.no_grad()
def run_head(
    head: Head,
    priors: PriorsLike,
    indices: Sequence[int],
    *,
    batch_size: int = 8,
    device: str = "cpu",
    on_batch: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Masks of all objects at the images' own sizes against the truth, and the selector's score of every word.

    Objects of samples that failed in extraction are misses. Only numbers are kept; on_batch is told how many samples
    a batch had.
    """
    head.to(device).eval()
    outcome = Outcome(referring=[], narrative=[], words=[], failures={}, seconds=0.0)
    start, selects = time.perf_counter(), True
    groups = [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]
    jobs = [partial(read_batch, priors, group, head, device) for group in groups]
    for group, batch in zip(groups, prefetch(jobs), strict=True):
        if batch is not None:
            inputs = batch.inputs.to(device)
            output = head(inputs)
            selects = output.keyword is not None
            token_scores = None if output.keyword is None else output.keyword.sigmoid().cpu().numpy()
            logits = dict(zip(batch.indices, to_image_masks(output, inputs), strict=True))
            items = dict(zip(batch.indices, batch.items, strict=True))
        else:
            token_scores, logits, items = None, {}, {}
        used = 0
        for index in group:
            sample = priors.samples[index]
            results = outcome.narrative if sample.task == "narrative" else outcome.referring
            if index not in logits:
                results += [ObjectResult.missed(**_described(sample, o), area=area(o.mask)) for o in sample.objects]
                outcome.failures[sample.sample_id] = priors.failures.get(index, "no priors")
            else:
                results += _scored(sample, logits[index])
            if sample.task == "narrative":
                words, truth = words_in(sample.pieces)
                scores = None
                if index in items and token_scores is not None:
                    count = len(items[index].answer_word)
                    scores = word_scores(token_scores[used : used + count], items[index].answer_word, len(words))
                    used += count
                outcome.words.append(
                    WordResult(
                        sample_id=sample.sample_id,
                        dataset=sample.dataset,
                        split=sample.split,
                        image_id=sample.image_id,
                        words=words,
                        truth=truth,
                        scores=scores,
                    )
                )
        on_batch(len(group))
    if not selects:  # its words are not wrong: it says nothing about them
        outcome.words = []
    outcome.seconds = time.perf_counter() - start
    return outcome


def _described(sample: Sample, item: Object) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "split": sample.split,
        "image_id": sample.image_id,
        "phrase": item.phrase,
        "is_thing": item.is_thing,
        "plural": item.plural,
    }


def _scored(sample: Sample, logits: ImageLogits) -> list[ObjectResult]:
    truth = np.stack([decode(o.mask) for o in sample.objects])
    coarse = intersection_union((logits.coarse > 0).cpu().numpy(), truth)
    fine = coarse if logits.refined is None else intersection_union((logits.refined > 0).cpu().numpy(), truth)
    return [
        ObjectResult(
            **_described(sample, item),
            area=int(truth[k].sum()),
            intersection=int(fine[0][k]),
            union=int(fine[1][k]),
            coarse_intersection=int(coarse[0][k]),
            coarse_union=int(coarse[1][k]),
        )
        for k, item in enumerate(sample.objects)
    ]


def summarise(outcome: Outcome, priors: PriorsLike, head: Head, *, lam: float, run: dict[str, Any]) -> Evaluation:
    """The protocols' tables. `lam`: threshold of the keyword selector."""
    kinds: tuple[Which, ...] = ("refined", "coarse") if head.refined_size is not None else ("coarse",)
    train = priors.samples.where(split=["train"], task=["narrative"])
    lexicon = Lexicon.fit(words_in(priors.samples[i].pieces) for i in train)
    keywords: list[KeywordRow | None] = []
    sweep: list[KeywordRow] = []
    for (dataset, _), words in by_split(outcome.words).items():
        keywords.append(summarise_keywords(words, lam))
        if train:
            keywords.append(summarise_chooser(words, "lexicon", lexicon))
        if dataset.startswith(("scenes", "shifted")):
            keywords.append(summarise_chooser(words, "every noun phrase", NounPhrases.for_scenes()))
        sweep += sweep_keywords(words)
    return Evaluation(
        run=run,
        measures=[
            *as_measures(
                [row for kind in kinds for row in summarise_res(outcome.referring, kind)],
                [row for kind in kinds for row in summarise_png(outcome.narrative, kind)],
                [*(row for row in keywords if row is not None), *(row for row in sweep if row.lam != lam)],
            )
        ],
        failures=outcome.failures,
    )


@torch.no_grad()
def draw_cases(
    head: Head, priors: PriorsLike, indices: Sequence[int], outcome: Outcome, data_root: Path, *, each: int = 2
) -> list[Case]:
    """Best, median, worst and random objects, computed once more for their masks. Images are opened here only."""
    results = outcome.referring + outcome.narrative
    place: dict[str, int] = {}
    numbers = []  # of each result: which object of its sample it is
    for result in results:
        numbers.append(place.get(result.sample_id, 0))
        place[result.sample_id] = numbers[-1] + 1
    chosen = choose_cases(results, each)
    ids = {results[number].sample_id for _, number in chosen}
    index_of = {name: index for index, name in enumerate(priors.samples.ids()) if name in ids}
    cases = []
    for kind, number in chosen:
        result = results[number]
        index, item = index_of[result.sample_id], numbers[number]
        batch = read_batch(priors, [index], head)
        assert batch is not None
        logits = to_image_masks(head(batch.inputs), batch.inputs)[0]
        coarse = (logits.coarse[item] > 0).cpu().numpy()
        refined = coarse if logits.refined is None else (logits.refined[item] > 0).cpu().numpy()
        sample = priors.samples[index]
        size = (sample.height, sample.width)
        attention = crop_resize(batch.inputs.attention[item].mean(0, keepdim=True), as_box(batch.items[0].box), size)
        cases.append(
            Case(
                image=np.asarray(open_image(data_root / sample.image_path, (sample.width, sample.height))),
                truth=decode(sample.objects[item].mask),
                refined=refined,
                coarse=None if logits.refined is None else coarse,
                attention=attention[0].numpy(),
                caption=sample.objects[item].phrase,
                iou=result.intersection / max(1, result.union),
                coarse_iou=None if logits.refined is None else result.coarse_intersection / max(1, result.coarse_union),
                kind=kind,
            )
        )
    return cases
