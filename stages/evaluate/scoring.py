"""A head on cached priors, batch by batch: what its masks and chosen words are worth, as a few numbers each.

`run_head` is all of evaluation that needs the head; protocols make tables of what it found.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cache.priors import SamplePriors, merged
from manifests.errors import DatasetError, ModelError
from manifests.masks import area, decode
from manifests.schema import CAPTIONS, Object, Sample
from stages.evaluate.gcg import GcgResult, pair_ious
from stages.evaluate.keywords import WordResult, choose, word_scores
from stages.evaluate.keywords import words_of as words_in
from stages.evaluate.metrics import intersection_union
from stages.evaluate.results import ObjectResult, describe
from stages.train_head.data import Batch, PriorsLike, batch_of, prefetch, read_batch, splits_of
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, ImageLogits, image_logits, to_image_masks

LAMBDA: Final = 0.3
"""λ of the paper: words that the selector gives more are keywords."""
PUNCTUATION: Final = " .,;:!?\"'()"
"""What may surround a phrase and is none of it."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a head did on some samples: numbers and texts, no masks."""

    objects: list[ObjectResult] = field(default_factory=list)
    words: list[WordResult] = field(default_factory=list)
    """Of captions that were given to the LMM; mean nothing unless `selects`."""
    conversations: list[GcgResult] = field(default_factory=list)
    """Of the LMM's own captions; mean nothing unless `selects`."""
    selects: bool = True
    """Has the head a keyword selector, as far as it was asked?"""
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Outcome, *, objects: bool = True) -> None:
        """Join what another one has. objects=False: but not its objects, which are kept elsewhere."""
        for name in (*(("objects",) if objects else ()), "words", "conversations"):
            getattr(self, name).extend(getattr(other, name))
        self.failures |= other.failures
        self.selects &= other.selects


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


def run_head(
    head: Head,
    priors: PriorsLike,
    indices: Sequence[int],
    *,
    batch_size: int = 8,
    device: str = "cpu",
    lam: float = LAMBDA,
) -> Outcome:
    """What the head did on the samples: those with given texts in order, then the LMM's own captions.

    Masks of all objects at the images' own sizes against the truth; the selector's score of every word; of the LMM's
    own captions the phrases that the selector chooses with threshold `lam`, and their masks. Objects of samples that
    failed in extraction are misses.
    """
    outcome, start = Outcome(), time.perf_counter()
    head.to(device).eval()
    searched = [index for index in indices if _is_search(priors.samples[index])]
    among = set(searched)
    given = [index for index in indices if index not in among]
    batches = [given[first : first + batch_size] for first in range(0, len(given), batch_size)]
    jobs = [partial(read_batch, priors, group, head, device) for group in batches]
    for group, batch in zip(batches, prefetch(jobs), strict=True):
        outcome.add(_scored(head, priors, group, batch, device))
        known = set(batch.indices) if batch else set()
        outcome.failures |= _failures(priors, [index for index in group if index not in known])
    # one at a time: every word of a caption has the maps of an object
    items = prefetch([partial(priors.read, index) for index in searched], depth=1)
    for index, item in zip(searched, items, strict=True):
        outcome.add(_searched(head, priors, index, item, device, lam))
        outcome.failures |= _failures(priors, [index] if item is None else [])
    outcome.seconds = time.perf_counter() - start
    return outcome


def _failures(priors: PriorsLike, failed: Sequence[int]) -> dict[str, str]:
    return {priors.samples[index].sample_id: priors.failures.get(index, "no priors") for index in failed}


def _is_search(sample: Sample) -> bool:
    """Is it the LMM's own caption, to be searched for phrases?"""
    return sample.task == "conversation" and sample.reply is not None


def _scored(head: Head, priors: PriorsLike, group: Sequence[int], batch: Batch | None, device: str) -> Outcome:
    """The truth's own objects and words."""
    scored, places = Outcome(), dict[int, int]()
    words: dict[int, np.ndarray] | None = {}
    if batch is not None:
        inputs = batch.inputs.to(device)
        output = run(head, inputs)
        places = {index: place for place, index in enumerate(batch.indices)}
        words = _word_scores(output.keyword, batch, priors)
    for index in group:
        sample = priors.samples[index]
        if index not in places:
            scored.objects += [_missed(index, sample, number) for number in range(len(sample.objects))]
        else:
            scored.objects += _compared(index, sample, image_logits(output, inputs, places[index]))
        if sample.task in CAPTIONS:
            silent = np.zeros(len(words_in(sample.pieces)[0])) if words is None else words.get(index)
            scored.words.append(WordResult.of(sample, silent if index in places else None))
    scored.selects = words is not None or not any(priors.samples[index].task in CAPTIONS for index in group)
    return scored


@torch.no_grad()
def run(head: Head, inputs: HeadBatch) -> HeadOutput:
    """The head's logits. Raises ModelError where they are no numbers: they would be masks without pixels in silence."""
    output = head(inputs)
    for name in ("coarse", "refined", "keyword"):
        _require_finite(name, getattr(output, name))
    return output


def _require_finite(name: str, logits: Tensor | None) -> None:
    if logits is not None and not bool(torch.isfinite(logits).all()):
        raise ModelError(f"the head's {name} logits are not finite: its weights are broken, train it again")


def _word_scores(keyword: Tensor | None, batch: Batch, priors: PriorsLike) -> dict[int, np.ndarray] | None:
    """float32 [words] of every caption of a batch, by sample; None: the head says nothing about words."""
    if keyword is None:
        return None
    scores, used, found = keyword.sigmoid().cpu().numpy(), 0, {}
    for index, item in zip(batch.indices, batch.items, strict=True):
        sample = priors.samples[index]
        if sample.task not in CAPTIONS:
            continue
        words = sample.slots if _is_search(sample) else len(words_in(sample.pieces)[0])
        tokens = slice(used, used := used + len(item.answer_word))
        found[index] = word_scores(scores[tokens], item.answer_word, words)
    return found


def _missed(index: int, sample: Sample, number: int) -> ObjectResult:
    item = sample.objects[number]
    pixels = area(item.mask) if item.ignore is None else int((decode(item.mask) & ~decode(item.ignore)).sum())
    return ObjectResult.missed(**describe(index, sample, number), area=pixels)


def _compared(index: int, sample: Sample, logits: ImageLogits) -> list[ObjectResult]:
    truth = np.stack([_truth(item) for item in sample.objects])
    counted = np.stack([_counted(item) for item in sample.objects])
    coarse = intersection_union((logits.coarse > 0).cpu().numpy() & counted, truth)
    refined = logits.refined
    fine = coarse if refined is None else intersection_union((refined > 0).cpu().numpy() & counted, truth)
    return [
        ObjectResult(
            **describe(index, sample, k),
            area=int(truth[k].sum()),
            intersection=int(fine[0][k]),
            union=int(fine[1][k]),
            coarse_intersection=int(coarse[0][k]),
            coarse_union=int(coarse[1][k]),
        )
        for k in range(len(sample.objects))
    ]


def _counted(item: Object) -> np.ndarray:
    """bool [height, width], or [1, 1]: the pixels that count."""
    return np.ones((1, 1), bool) if item.ignore is None else ~decode(item.ignore)


def _truth(item: Object) -> np.ndarray:
    """bool [height, width]: the pixels of the object that count."""
    return decode(item.mask) & _counted(item)


def _searched(
    head: Head, priors: PriorsLike, index: int, item: SamplePriors | None, device: str, lam: float
) -> Outcome:
    """The phrases that the selector finds in the LMM's own caption, and how far their masks agree with the truth's."""
    sample = priors.samples[index]
    if item is None:
        return Outcome(conversations=[GcgResult.missed(**_told(sample))])
    found = choose_phrases(head, priors, index, item, device, lam)
    if found is None:
        return Outcome(conversations=[GcgResult.missed(**_told(sample))], selects=False)
    phrases, scores = found
    masks = phrase_masks(head, priors, index, item, phrases, device)
    words = sample.reply.text.split() if sample.reply else []
    result = GcgResult(
        **_told(sample),
        caption=sample.reply.text if sample.reply else "",
        phrases=tuple(spoken([words[k] for k in phrase]) for phrase in phrases),
        scores=scores,
        ious=pair_ious(masks, np.stack([decode(item.mask) for item in sample.objects])),
    )
    return Outcome(conversations=[result])


def spoken(words: Sequence[str]) -> str:
    """A phrase without the punctuation around it, as the truth's phrases are."""
    text = " ".join(words)
    return text.strip(PUNCTUATION) or text


def _told(sample: Sample) -> dict[str, Any]:
    """What a result of a conversation knows from the data alone."""
    return {
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "split": sample.split,
        "image_id": sample.image_id,
        "reference": " ".join(words_in(sample.pieces)[0]),
        "true_phrases": tuple(item.phrase for item in sample.objects),
    }


def choose_phrases(
    head: Head, priors: PriorsLike, index: int, item: SamplePriors, device: str, lam: float
) -> tuple[list[list[int]], np.ndarray] | None:
    """The phrases of a sample's reply (the words of each), and float [phrases] scores; None without a selector."""
    words = score_words(head, priors, index, item, device)
    return None if words is None else phrases_above(words, lam)


@torch.no_grad()
def score_words(head: Head, priors: PriorsLike, index: int, item: SamplePriors, device: str) -> np.ndarray | None:
    """float32 [words]: the selector's score of every word of a sample's reply; None without a selector."""
    # the selector looks at the states of the whole answer; of the objects one will do, nobody wants its mask
    one = merged(item, [[0]], _merge(priors))
    batch = batch_of(priors, [(index, one)], head, device)
    keyword = head.keywords(batch.inputs.to(device))
    _require_finite("keyword", keyword)
    words = _word_scores(keyword, batch, priors)
    return None if words is None else words[index]


def phrases_above(words: np.ndarray, lam: float) -> tuple[list[list[int]], np.ndarray]:
    """Runs of words with scores (float [words]) above `lam`: the words of each run, and float [runs] mean scores."""
    phrases = runs_of(choose(words, lam))
    return phrases, np.array([words[phrase].mean() for phrase in phrases])


def runs_of(labels: np.ndarray) -> list[list[int]]:
    """Runs of neighbours with one label >= 0, the positions of each. labels: int [n]."""
    borders = np.flatnonzero(np.diff(labels, prepend=-1, append=-1))
    return [
        list(range(start, stop))
        for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
        if labels[start] >= 0
    ]


def phrase_masks(
    head: Head,
    priors: PriorsLike,
    index: int,
    item: SamplePriors,
    phrases: Sequence[Sequence[int]],
    device: str,
) -> np.ndarray:
    """bool [phrases, height, width]: the head's last masks of phrases (the words of each) of a sample's reply."""
    if not phrases:
        sample = priors.samples[index]
        return np.zeros((0, sample.height, sample.width), bool)
    inputs = batch_of(priors, [(index, merged(item, phrases, _merge(priors)))], head, device).inputs.to(device)
    (logits,) = to_image_masks(run(head, inputs), inputs)
    last = logits.coarse if logits.refined is None else logits.refined
    return (last > 0).cpu().numpy()


def _merge(priors: PriorsLike) -> str:
    """How the cache's maps were merged over words."""
    return str(priors.identity["merge"])
