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
from stages.evaluate.gcg import summarise_gcg
from stages.evaluate.keywords import summarise_chooser, summarise_keywords, words_of
from stages.evaluate.measures import Measure
from stages.evaluate.noun_chunks import NounChunks
from stages.evaluate.png import recall_curves, summarise_png
from stages.evaluate.reasonseg import summarise_reasonseg
from stages.evaluate.res import protocol_of, summarise_res
from stages.evaluate.results import ObjectResult, Which
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
    if not outcome.selects:  # its words are not wrong: it says nothing about them
        return []
    train = priors.samples.where(split=["train"], task=CAPTIONS)
    lexicon = Lexicon.fit(words_of(priors.samples[i].pieces) for i in train)
    measures = summarise_keywords(outcome.words, lam)
    if train:
        measures += summarise_chooser(outcome.words, "lexicon", lexicon)
    rendered = [words for words in outcome.words if words.dataset.startswith(("scenes", "shifted"))]
    measures += summarise_chooser(rendered, "every noun phrase", NounPhrases.for_scenes())
    if texts.noun_chunks is not None:
        measures += summarise_chooser(outcome.words, texts.noun_chunks.name, texts.noun_chunks)
    return measures


def conversations_measured(outcome: Outcome, head: Head, texts: TextModels) -> list[Measure]:
    """GCG as the public script computes it, and with its faults mended."""
    if not outcome.selects:
        return []
    method = "refined" if head.refined_size is not None else "coarse"
    captions = score_captions if texts.captions else lambda *_: NOT_ASKED
    scored = partial(summarise_gcg, similarity=texts.similarity, captions=captions, method=method)
    return [m for strict in (False, True) for m in scored(outcome.conversations, strict=strict)]


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
    chunks = texts.noun_chunks
    return Evaluation(
        run=run,
        measures=[
            *masks_measured(objects, head, priors.samples.meta),
            *conversations_measured(outcome, head, texts),
            *words_measured(outcome, priors, lam, texts),
        ],
        text_models={
            "similarity": texts.similarity.identity,
            "captions": caption_identity(),
            **({"noun chunks": chunks.identity} if chunks else {}),
        },
        failures=outcome.failures,
        curves=recall_curves(objects, last),
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
