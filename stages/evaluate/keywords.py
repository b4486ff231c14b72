"""Keyword choice: which words of a text should be grounded, and which runs of words are one phrase.

Three levels, each with precision, recall and F1:
    word      a word is right if it is chosen and belongs to an object
    phrase    chosen words that touch are one phrase; it is right if exactly these words are a true phrase
    overlap   as phrase, but right if it shares more than half of the words of both together with a true phrase
              (more than half: no two phrases can match the same one)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from manifests.schema import Piece
from stages.evaluate.bootstrap import DRAWS, Estimate, estimate

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Counts and ratios at one level."""

    chosen: int
    true: int
    right: int
    precision: float | None
    """None where nothing was chosen."""
    recall: float | None
    """None where nothing is true."""
    f1: Estimate | None
    """None where nothing was chosen and nothing is true."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeywordRow:
    """One method's line of the table. `lam` is the selector's threshold, None for a baseline."""

    protocol: str
    dataset: str
    """Of the texts; where they are of several, all names joined by " + " (also in `split`)."""
    split: str
    method: str
    lam: float | None
    samples: int
    failed: int
    word: Score
    phrase: Score
    overlap: Score


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


def summarise_keywords(
    results: Sequence[WordResult], lam: float, *, seed: int = 0, draws: int = DRAWS
) -> KeywordRow | None:
    """The selector at threshold `lam`; None where there is no text."""
    chosen = [None if r.scores is None else choose(r.scores, lam) for r in results]
    return _row(results, chosen, method="selector", lam=lam, seed=seed, draws=draws)


def sweep_keywords(results: Sequence[WordResult], lams: Sequence[float] = SWEEP) -> list[KeywordRow]:
    """The selector at each of `lams`, without intervals: to look at, not to pick the threshold of a reported number."""
    rows = [summarise_keywords(results, lam, draws=0) for lam in lams]
    return [row for row in rows if row is not None]


def summarise_chooser(
    results: Sequence[WordResult], method: str, chooser: Chooser, *, seed: int = 0, draws: int = DRAWS
) -> KeywordRow | None:
    """A baseline that looks at the words alone (see `baselines`); None where there is no text."""
    chosen = [None if r.scores is None else chooser(r.words) for r in results]
    return _row(results, chosen, method=method, lam=None, seed=seed, draws=draws)


def _row(
    results: Sequence[WordResult],
    chosen: Sequence[np.ndarray | None],
    *,
    method: str,
    lam: float | None,
    seed: int,
    draws: int,
) -> KeywordRow | None:
    if not results:
        return None
    sample = np.repeat(np.arange(len(results)), [len(r.words) for r in results])
    truth = np.concatenate([r.truth for r in results])
    labels = np.concatenate(
        [np.full(len(r.words), -1) if c is None else c for r, c in zip(results, chosen, strict=True)]
    )
    images = np.array([r.image_id for r in results], np.str_)

    def score(chosen_in: np.ndarray, true_in: np.ndarray, right_in: np.ndarray) -> Score:
        return _score(images, chosen_in, true_in, right_in, seed=seed, draws=draws)

    is_chosen, is_true = labels >= 0, truth >= 0
    chosen_run, chosen_start = _runs(labels, sample)
    true_run, true_start = _runs(truth, sample)
    exact, overlap = _matches(chosen_run, true_run)
    chosen_in, true_in = sample[chosen_start], sample[true_start]
    return KeywordRow(
        protocol=PROTOCOL,
        dataset=" + ".join(dict.fromkeys(r.dataset for r in results)),
        split=" + ".join(dict.fromkeys(r.split for r in results)),
        method=method,
        lam=lam,
        samples=len(results),
        failed=sum(r.scores is None for r in results),
        word=score(sample[is_chosen], sample[is_true], sample[is_chosen & is_true]),
        phrase=score(chosen_in, true_in, chosen_in[exact]),
        overlap=score(chosen_in, true_in, chosen_in[overlap]),
    )


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


def _score(
    images: np.ndarray, chosen_in: np.ndarray, true_in: np.ndarray, right_in: np.ndarray, *, seed: int, draws: int
) -> Score:
    """images: str [samples], each sample's image; the others: the sample of every chosen, true and right item."""
    chosen, true, right = (np.bincount(items, minlength=len(images)) for items in (chosen_in, true_in, right_in))
    f1 = estimate(images, 2 * right, chosen + true, seed=seed, draws=draws)
    return Score(
        chosen=len(chosen_in),
        true=len(true_in),
        right=len(right_in),
        precision=len(right_in) / len(chosen_in) if len(chosen_in) else None,
        recall=len(right_in) / len(true_in) if len(true_in) else None,
        f1=f1,
    )
