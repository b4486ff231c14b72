"""Stage 3: what a head did on held-out samples -> every protocol's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from manifests.schema import CAPTIONS
from stages.evaluate.baselines import Lexicon, NounPhrases
from stages.evaluate.captions import CaptionScore, score_captions
from stages.evaluate.captions import identity as caption_identity
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.gcg import GcgResult, summarise_gcg
from stages.evaluate.keywords import WordResult, summarise_chooser, summarise_keywords, words_of
from stages.evaluate.measures import Measure
from stages.evaluate.noun_chunks import NounChunks
from stages.evaluate.png import recall_curves, summarise_png
from stages.evaluate.reasonseg import summarise_reasonseg
from stages.evaluate.res import protocol_of, summarise_res
from stages.evaluate.results import ObjectResult, Which, by_split
from stages.evaluate.scoring import Outcome
from stages.evaluate.similarity import Similarity
from stages.train_head.data import PriorsLike
from stages.train_head.heads.base import Head


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


NOT_ASKED: Final = {name: CaptionScore(value=None, absent="evaluate with --captions") for name in ("meteor", "cider")}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextModels:
    """What reads texts, by name: another model is another number, so their identities stay with the results."""

    similarity: Similarity
    """Of GCG's phrases."""
    noun_chunks: NounChunks | None = None
    """spaCy's, the rival of the keyword selector; None: not asked for."""
    captions: bool = True
    """METEOR and CIDEr; False: not asked for."""


def words_measured(outcome: Outcome, priors: PriorsLike, lam: float, texts: TextModels) -> list[Measure]:
    """Keywords: the selector at `lam` and over its range, and what chooses words without looking at the LMM."""
    if outcome.selects:
        measures = summarise_keywords(outcome.words, lam)
    else:
        measures = _silent("keywords", outcome.words, method="selector", group="word", metric="f1")
    train = priors.samples.where(split=["train"], task=CAPTIONS)
    if train:
        lexicon = Lexicon.fit(words_of(priors.samples[i].pieces) for i in train)
        measures += summarise_chooser(outcome.words, "lexicon", lexicon)
    rendered = [words for words in outcome.words if words.dataset.startswith(("scenes", "shifted"))]
    measures += summarise_chooser(rendered, "every noun phrase", NounPhrases.for_scenes())
    if texts.noun_chunks is not None:
        measures += summarise_chooser(outcome.words, texts.noun_chunks.name, texts.noun_chunks)
    return measures


def conversations_measured(outcome: Outcome, head: Head, texts: TextModels) -> list[Measure]:
    """GCG as the public script computes it, and with its faults mended."""
    method = "refined" if head.refined_size is not None else "coarse"
    if not outcome.selects:
        return _silent("gcg", outcome.conversations, method=method, group="all", metric="miou")
    captions = score_captions if texts.captions else lambda *_: NOT_ASKED
    scored = partial(summarise_gcg, similarity=texts.similarity, captions=captions, method=method)
    return [m for strict in (False, True) for m in scored(outcome.conversations, strict=strict)]


def _silent(
    protocol: str, results: Sequence[WordResult] | Sequence[GcgResult], *, method: str, group: str, metric: str
) -> list[Measure]:
    """What a head without a trained keyword selector leaves unmeasured, by split."""
    return [
        Measure(
            protocol=protocol,
            dataset=dataset,
            split=split,
            method=method,
            group=group,
            metric=metric,
            value=None,
            images=len({r.image_id for r in found}),
            items=len(found),
            absent="the head has no keyword selector that was trained: train one on captions (PNG)",
        )
        for (dataset, split), found in by_split([*results]).items()
    ]


def summarise(
    objects: Sequence[ObjectResult],
    outcome: Outcome,
    priors: PriorsLike,
    head: Head,
    texts: TextModels,
    *,
    lam: float,
    run: dict[str, Any],
) -> Evaluation:
    """All numbers. objects: those of `outcome`, wherever they are kept.  lam: the keyword selector's threshold."""
    last: Which = "refined" if head.refined_size is not None else "coarse"
    return Evaluation(
        run=run,
        measures=[
            *masks_measured(objects, head, priors.samples.meta),
            *conversations_measured(outcome, head, texts),
            *words_measured(outcome, priors, lam, texts),
        ],
        text_models=_used(outcome, texts),
        failures=outcome.failures,
        curves=recall_curves(objects, last),
    )


def _used(outcome: Outcome, texts: TextModels) -> dict[str, Any]:
    """The identities of the models that have read something."""
    used: dict[str, Any] = {}
    if outcome.conversations and outcome.selects:
        used["similarity"] = texts.similarity.identity
        if texts.captions:
            used["captions"] = caption_identity()
    if outcome.words and texts.noun_chunks is not None:
        used["noun chunks"] = texts.noun_chunks.identity
    return used


def in_order(reports: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
    """What the workers report, in the order of the units: so that what follows is the same for any number."""
    waiting: dict[int, Outcome] = {}
    following = 0
    for report in reports:
        waiting[report["unit"]] = report["outcome"]
        while following in waiting:
            yield waiting.pop(following)
            following += 1
