"""Grounded conversation generation (GranD-f): a caption of the LMM's own, its phrases found and given masks.

Two protocols on the same records, each METEOR, CIDEr, AP50, mIoU and recall (IoU >= 0.5 and text similarity >= 0.5).
"gcg" is what the public script computes (https://github.com/mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py on what
infer.py writes), to be put beside published numbers. "gcg-strict" mends what is wrong with it:

 1. recall: the search for pairs ends at the first pair (by falling IoU) whose phrases are not alike, and with it all
    that the image still had.  Strict: such a pair is passed over.
 2. recall: pairs are taken greedily, by IoU.  Strict: as many admissible pairs, one to one, as can be had at once.
 3. mIoU: pairs are taken greedily, by IoU.  Strict: the one-to-one pairs with the largest total IoU.
 4. mIoU: the mean is over pairs that overlap; a truth that no mask touches is not missed.  Strict: it counts as 0.
 5. mIoU: first a mean per image, then over images: a phrase counts less where there are many.  Strict: one mean over
    all true phrases.
 6. AP50: every prediction has score 1, so that their rank is the order of the image ids.  Strict: the records' scores.
 7. AP50: a mask is right whatever its phrase says.  Strict: only with text similarity >= 0.5 as well.
 8. captions: tags, "[SEG]" and outer quotes are removed from the LMM's captions, not from the references.  Strict:
    from both.
 9. captions: a line break is deleted ("a dog\\nruns" is "a dogruns").  Strict: it becomes a space.

Not copied, because a record here can not have it: masks and phrases of different number (the script swallows the
IndexError and loses the image's hits), masks without pixels (0 / 0). A failed sample has no file there, and the script
stops; here it is an empty caption without phrases, in both. Not mended: with BERT's averaged states almost any two
phrases are alike by 0.5; similarity is a parameter, and its name is part of the metric's ("recall[token_f1]").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from stages.evaluate.assignment import best_pairs
from stages.evaluate.average_precision import average_precision
from stages.evaluate.bootstrap import DRAWS, Estimate, estimate
from stages.evaluate.captions import CaptionScore
from stages.evaluate.measures import Measure
from stages.evaluate.metrics import intersection_union, iou
from stages.evaluate.results import by_split
from stages.evaluate.similarity import Similarity

PROTOCOL: Final = "gcg"
STRICT: Final = "gcg-strict"
SAME_MASK: Final = 0.5
SAME_TEXT: Final = 0.5

CaptionScorer = Callable[[Sequence[str], Sequence[str]], dict[str, CaptionScore]]
"""References and captions -> score by metric, as `captions.score_captions`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GcgResult:
    """One image's caption and how its p grounded phrases agree with the t true ones; holds no masks.

    reference, caption: the true text and the LMM's.  true_phrases: t texts.  phrases: p texts, in the caption's order.
    scores: float [p], how sure the phrase is to be grounded, larger is surer.  ious: float64 [p, t] (`pair_ious`).
    failed: nothing was extracted; then caption and phrases are empty, and everything true is missed.
    """

    sample_id: str
    dataset: str
    split: str
    image_id: str
    reference: str
    true_phrases: tuple[str, ...]
    caption: str
    phrases: tuple[str, ...]
    scores: np.ndarray
    ious: np.ndarray
    failed: bool = False

    def __post_init__(self) -> None:
        shape = (len(self.phrases), len(self.true_phrases))
        if self.scores.shape != shape[:1] or self.ious.shape != shape:
            raise ValueError(
                f"{self.sample_id}: {shape[0]} phrases and {shape[1]} true ones need scores [{shape[0]}] and IoU "
                f"{list(shape)}, got {list(self.scores.shape)} and {list(self.ious.shape)}"
            )
        if not (np.isfinite(self.scores).all() and ((self.ious >= 0) & (self.ious <= 1)).all()):
            raise ValueError(f"{self.sample_id}: scores must be finite, IoU must lie in [0, 1]")
        if self.failed and (self.caption or self.phrases):
            raise ValueError(f"{self.sample_id}: a failed sample has no caption and no phrases")

    @classmethod
    def missed(
        cls, *, sample_id: str, dataset: str, split: str, image_id: str, reference: str, true_phrases: tuple[str, ...]
    ) -> GcgResult:
        """A failed sample: no caption, no phrases."""
        return cls(
            sample_id=sample_id, dataset=dataset, split=split, image_id=image_id, reference=reference,
            true_phrases=true_phrases, caption="", phrases=(), scores=np.zeros(0),
            ious=np.zeros((0, len(true_phrases))), failed=True,
        )  # fmt: skip


def pair_ious(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 [p, t] of bool masks [p, height, width] and [t, height, width], pixels of the original image."""
    found = np.zeros((len(predicted), len(truth)))
    for k, mask in enumerate(predicted):  # one at a time: p · t masks at once would be large
        found[k] = iou(*intersection_union(np.broadcast_to(mask, truth.shape), truth))
    return found


def summarise_gcg(
    results: Sequence[GcgResult],
    *,
    similarity: Similarity,
    captions: CaptionScorer,
    strict: bool = False,
    method: str = "refined",
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Measure]:
    """Five measures per (dataset, split), in the order of their first result.

    captions: `captions.score_captions`. method: whose masks.  Intervals for mIoU and recall, which are ratios of sums
    over images; METEOR, CIDEr and AP50 look at all images at once and have none.
    """
    measures: list[Measure] = []
    for (dataset, split), group in by_split(results).items():
        group = sorted(group, key=lambda r: r.image_id)  # where scores are equal AP goes by this order, as COCO's does
        images = np.array([r.image_id for r in group], np.str_)
        of = partial(
            Measure,
            protocol=STRICT if strict else PROTOCOL,
            dataset=dataset,
            split=split,
            method=method,
            images=len(np.unique(images)),
        )
        references = [tidy(r.reference, strict) if strict else r.reference for r in group]
        scores = captions(references, [tidy(r.caption, strict) for r in group])
        failed = sum(r.failed for r in group)
        for metric, score in scores.items():
            value = None if score.value is None else _plain(score.value)
            measures.append(of(metric=metric, value=value, items=len(group), failed=failed, absent=score.absent))
        truths = np.array([len(r.true_phrases) for r in group], np.int64)
        missed = int(truths[[r.failed for r in group]].sum())
        alike = [similarity(r.phrases, r.true_phrases) >= SAME_TEXT for r in group]
        ap, overlap, weight, hits = (_strict if strict else _public)(group, alike)
        named = f"[{similarity.name}]"
        values = {
            "ap50" + named * strict: None if ap is None else _plain(ap),
            "miou": estimate(images, overlap, weight, seed=seed, draws=draws),
            "recall" + named: estimate(images, hits, truths, seed=seed, draws=draws),
        }
        measures += [of(metric=m, value=v, items=int(truths.sum()), failed=missed) for m, v in values.items()]
    return measures


def _plain(value: float) -> Estimate:
    return Estimate(value=value, low=None, high=None)


_Masks = tuple[float | None, np.ndarray, np.ndarray, np.ndarray]
"""AP50; numerator and denominator of mIoU, the hits of recall, each [results]."""


def _public(group: Sequence[GcgResult], alike: Sequence[np.ndarray]) -> _Masks:
    """alike: bool [p, t] of each result."""
    ap = average_precision([(np.ones(len(r.phrases)), r.ious) for r in group], SAME_MASK)
    means = np.array([_greedy_mean(r.ious) for r in group])
    hits = np.array([_greedy_hits(r.ious, same) for r, same in zip(group, alike, strict=True)])
    return ap, means, np.ones(len(group)), hits


def _strict(group: Sequence[GcgResult], alike: Sequence[np.ndarray]) -> _Masks:
    """alike: bool [p, t] of each result."""
    ranked = [(r.scores, np.where(same, r.ious, 0.0)) for r, same in zip(group, alike, strict=True)]
    totals = np.array([sum(r.ious[pair] for pair in best_pairs(r.ious)) for r in group])
    hits = np.array([_most_hits((r.ious >= SAME_MASK) & same) for r, same in zip(group, alike, strict=True)])
    return average_precision(ranked, SAME_MASK), totals, np.array([len(r.true_phrases) for r in group]), hits


def tidy(caption: str, strict: bool = False) -> str:
    """A caption without tags, "[SEG]" and outer single quotes. Line breaks vanish, or become spaces where `strict`."""
    text = caption.replace("\n", " " if strict else "")
    tagged, end, rest = text.rpartition(">")  # what follows the last ">" holds no whole tag; searched, it could cost n²
    text = (re.sub("<.*?>", "", tagged + end) + rest).replace("[SEG]", "")
    return " ".join(text.split()).strip("'").strip()


def _most_hits(admissible: np.ndarray) -> int:
    """How many pairs of bool [p, t] can be true at once, no row and no column twice."""
    return sum(bool(admissible[pair]) for pair in best_pairs(admissible.astype(np.float64)))


def _greedy_mean(ious: np.ndarray) -> float:
    """Mean IoU of the pairs taken by falling IoU while it is above 0 (faults 3 and 4); 0 without any."""
    left, taken = ious.copy(), []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(np.argmax(left), left.shape)
        taken.append(left[row, column])
        left[row, :] = left[:, column] = 0
    return float(np.mean(taken)) if taken else 0.0


def _greedy_hits(ious: np.ndarray, alike: np.ndarray) -> int:
    """Pairs taken by falling IoU, up to the first that is not admissible (faults 1 and 2).

    Of equal IoU the pair of the first truth is taken first, as there.
    """
    left, hits = ious.T.copy(), 0
    while left.size:
        truth, phrase = np.unravel_index(np.argmax(left), left.shape)
        if left[truth, phrase] < SAME_MASK or not alike[phrase, truth]:
            break
        hits += 1
        left[truth, :] = left[:, phrase] = 0
    return hits
