"""Keyword choice: which words of a text should be grounded, and which runs of words are one phrase.

Three levels (the measures' groups), each with precision, recall and F1 over all texts of a split together:
    word      a word is right if it is chosen and belongs to an object
    phrase    chosen words that touch are one phrase; it is right if exactly these words are a true phrase
    overlap   as phrase, but right if it shares more than half of the words of both together with a true phrase
              (more than half: no two phrases can match the same one)
Only for texts that the LMM was made to say (teacher forcing): of its own words nobody knows which name an object, so a
choice among them is judged by what becomes of it (GCG).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from manifests.schema import Piece, Sample
from stages.evaluate.bootstrap import DRAWS, estimate
from stages.evaluate.measures import Measure
from stages.evaluate.results import by_split

PROTOCOL: Final = "keywords"
SWEEP: Final = tuple(round(0.05 * k, 2) for k in range(1, 20))

Chooser = Callable[[Sequence[str]], np.ndarray]
"""Words -> int64 [words]: -1 where not chosen; chosen words that touch and have the same number are one phrase."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WordResult:
    """One text: its words, the truth, and the selector's scores.

    `truth`: int [words], -1 where a word belongs to no object, else a number that is the same for touching words
    exactly if they are of one phrase (the piece's index, or the object's).
    `scores`: float [words] in [0, 1], or None where the sample's extraction failed: all its true words are then missed,
    by the baselines too, so that every method is compared on the same samples.
    """

    sample_id: str
    dataset: str
    split: str
    image_id: str
    words: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray | None

    def __post_init__(self) -> None:
        lengths = {len(self.words), len(self.truth)} | (set() if self.scores is None else {len(self.scores)})
        if len(lengths) != 1:
            raise ValueError(f"{self.sample_id}: words, truth and scores differ in length: {sorted(lengths)}")

    @classmethod
    def of(cls, sample: Sample, scores: np.ndarray | None) -> WordResult:
        """The result of a teacher-forced sample with these word scores; ValueError for the LMM's own reply."""
        if sample.reply is not None:
            raise ValueError(f"{sample.sample_id}: nobody knows which words of the LMM's own reply name an object")
        words, truth = words_of(sample.pieces)
        return cls(
            sample_id=sample.sample_id,
            dataset=sample.dataset,
            split=sample.split,
            image_id=sample.image_id,
            words=words,
            truth=truth,
            scores=scores,
        )


def words_of(pieces: Sequence[Piece]) -> tuple[tuple[str, ...], np.ndarray]:
    """A text's words and their truth as `WordResult` wants it: every piece split at white space, in order.

    truth: int64 [words], the piece's position where it speaks of an object, else -1.
    """
    words = [(word, -1 if piece.object is None else k) for k, piece in enumerate(pieces) for word in piece.text.split()]
    return tuple(word for word, _ in words), np.array([label for _, label in words], np.int64)


def word_scores(token_scores: np.ndarray, token_words: np.ndarray, words: int) -> np.ndarray:
    """A word's score is the largest of its tokens'; 0 for a word without tokens.

    token_scores: float [A] in [0, 1]. token_words: int [A], the word in [0, words) that each token is part of.
    Returns float32 [words].
    """
    scores = np.zeros(words, np.float32)
    np.maximum.at(scores, token_words, token_scores.astype(np.float32))
    return scores


def choose(scores: np.ndarray, lam: float) -> np.ndarray:
    """float [words] -> int64 [words]: 0 for words with a score above `lam` in [0, 1], -1 for the others."""
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    return np.where(scores > lam, 0, -1)


def selector_at(lam: float) -> str:
    """The selector's name as a measure's method."""
    return f"selector λ={lam}"


def summarise_keywords(
    results: Sequence[WordResult],
    lam: float,
    *,
    sweep: Sequence[float] = SWEEP,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Measure]:
    """The selector at threshold `lam`, then at those of `sweep` but `lam`, for each (dataset, split).

    The sweep has no intervals: it is there to be looked at, not to pick the threshold of a reported number.
    """
    measures = []
    for group in by_split(results).values():
        for at in (lam, *(other for other in sweep if other != lam)):
            chosen = [None if r.scores is None else choose(r.scores, at) for r in group]
            measures += _measures(group, chosen, selector_at(at), seed, draws if at == lam else 0)
    return measures


def summarise_chooser(
    results: Sequence[WordResult], method: str, chooser: Chooser, *, seed: int = 0, draws: int = DRAWS
) -> list[Measure]:
    """A baseline that looks at the words alone (`baselines`, `noun_chunks`), for each (dataset, split)."""
    measures = []
    for group in by_split(results).values():
        chosen = [None if r.scores is None else chooser(r.words) for r in group]
        measures += _measures(group, chosen, method, seed, draws)
    return measures


def _measures(
    results: Sequence[WordResult], chosen: Sequence[np.ndarray | None], method: str, seed: int, draws: int
) -> list[Measure]:
    """Nine measures of the results of one split, one or more; chosen: int [words] of each, None where it failed."""
    sample = np.repeat(np.arange(len(results)), [len(r.words) for r in results])
    truth = np.concatenate([r.truth for r in results])
    labels = np.concatenate(
        [np.full(len(r.words), -1) if c is None else c for r, c in zip(results, chosen, strict=True)]
    )
    is_chosen, is_true = labels >= 0, truth >= 0
    chosen_run, chosen_start = _runs(labels, sample)
    true_run, true_start = _runs(truth, sample)
    exact, overlap = _matches(chosen_run, true_run)
    chosen_in, true_in = sample[chosen_start], sample[true_start]
    levels = {  # the sample of everything that was chosen, is true, and is right
        "word": (sample[is_chosen], sample[is_true], sample[is_chosen & is_true]),
        "phrase": (chosen_in, true_in, chosen_in[exact]),
        "overlap": (chosen_in, true_in, chosen_in[overlap]),
    }
    images = np.array([r.image_id for r in results], np.str_)
    measures = []
    for group, items in levels.items():
        n_chosen, n_true, right = (np.bincount(of, minlength=len(results)) for of in items)
        ratios = {"precision": (right, n_chosen), "recall": (right, n_true), "f1": (2 * right, n_chosen + n_true)}
        measures += [
            Measure(
                protocol=PROTOCOL,
                dataset=results[0].dataset,
                split=results[0].split,
                method=method,
                group=group,
                metric=metric,
                value=estimate(images, *ratio, seed=seed, draws=draws),
                images=len(np.unique(images)),
                items=len(results),
                failed=sum(r.scores is None for r in results),
            )
            for metric, ratio in ratios.items()
        ]
    return measures


def _runs(labels: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of one label >= 0 inside one sample: the run of each word (int [words], -1: none), and where runs start."""
    inside = labels >= 0
    first = np.ones(len(labels), bool)
    first[1:] = (labels[1:] != labels[:-1]) | (sample[1:] != sample[:-1])
    starts = np.flatnonzero(first & inside)
    return np.where(inside, np.cumsum(first & inside) - 1, -1), starts


def _matches(chosen_run: np.ndarray, true_run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the chosen runs that equal a true run, and of those whose IoU in words with one is above a half."""
    shared = (chosen_run >= 0) & (true_run >= 0)
    pairs, common = np.unique(np.stack([chosen_run[shared], true_run[shared]]), axis=1, return_counts=True)
    chosen_size = np.bincount(chosen_run[chosen_run >= 0])[pairs[0]]
    true_size = np.bincount(true_run[true_run >= 0])[pairs[1]]
    union = chosen_size + true_size - common
    return pairs[0][common == union], pairs[0][2 * common > union]
