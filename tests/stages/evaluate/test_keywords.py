"""Keyword metrics against a plain loop over words and phrases."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.schema import Piece
from stages.evaluate.keywords import (
    Score,
    WordResult,
    choose,
    summarise_chooser,
    summarise_keywords,
    sweep_keywords,
    word_scores,
    words_of,
)


def make(truth: list[int], scores: list[float] | None, sample: str = "s0") -> WordResult:
    words = tuple(f"w{k}" for k in range(len(truth)))
    values = None if scores is None else np.array(scores)
    return WordResult(
        sample_id=sample,
        dataset="scenes-png",
        split="val",
        image_id=sample,
        words=words,
        truth=np.array(truth, np.int64),
        scores=values,
    )


def phrases(labels: list[int]) -> list[set[int]]:
    """Runs of one label >= 0, as sets of positions."""
    groups = groupby(range(len(labels)), key=lambda k: labels[k])
    return [set(positions) for label, positions in groups if label >= 0]


def plain_counts(results: list[WordResult], lam: float) -> dict[str, list[int]]:
    """[chosen, true, right] of each level, by loops."""
    counts = {"word": [0, 0, 0], "phrase": [0, 0, 0], "overlap": [0, 0, 0]}
    for result in results:
        scores = [0.0] * len(result.words) if result.scores is None else result.scores.tolist()
        labels = [0 if score > lam else -1 for score in scores]
        chosen, true = phrases(labels), phrases(result.truth.tolist())
        right = {
            "word": [label for label, t in zip(labels, result.truth, strict=True) if label >= 0 and t >= 0],
            "phrase": [p for p in chosen if p in true],
            "overlap": [p for p in chosen if any(len(p & t) / len(p | t) > 0.5 for t in true)],
        }
        for level, hits in right.items():
            size = (lambda runs: sum(map(len, runs))) if level == "word" else len
            for k, value in enumerate((size(chosen), size(true), len(hits))):
                counts[level][k] += value
    return counts


_WORD = st.tuples(st.sampled_from([-1, -1, 0, 1]), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
_TEXT = st.tuples(st.lists(_WORD, max_size=12), st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=5), st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_counts_by_plain_loops(texts: list[tuple[list[tuple[int, float]], bool]], lam: float) -> None:
    results = [
        make([t for t, _ in words], None if failed else [s for _, s in words], sample=str(k))
        for k, (words, failed) in enumerate(texts)
    ]
    row = summarise_keywords(results, lam, draws=0)
    for level, (chosen, true, right) in plain_counts(results, lam).items():
        score: Score = getattr(row, level)
        assert (score.chosen, score.true, score.right) == (chosen, true, right), level
        assert score.precision == (right / chosen if chosen else None)
        assert score.recall == (right / true if true else None)
        if score.precision is not None and score.recall is not None:
            p, r = score.precision, score.recall
            assert score.f1.value == pytest.approx(2 * p * r / (p + r) if right else 0)


def test_runs_do_not_cross_samples() -> None:
    results = [make([-1, 0], [0.1, 0.9], "a"), make([0, -1], [0.9, 0.1], "b")]
    row = summarise_keywords(results, 0.3)
    assert (row.phrase.chosen, row.phrase.true, row.phrase.right) == (2, 2, 2)


def test_touching_phrases_are_two_in_truth_and_one_when_chosen() -> None:
    row = summarise_keywords([make([0, 0, 1, 1], [0.9] * 4)], 0.3)
    assert (row.word.right, row.phrase.chosen, row.phrase.true, row.phrase.right) == (4, 1, 2, 0)
    assert row.overlap.right == 0  # exactly a half of each is not more than a half


def test_overlap_forgives_the_article() -> None:
    row = summarise_keywords([make([0, 0, 0, -1], [0.1, 0.9, 0.9, 0.1])], 0.3)
    assert (row.phrase.right, row.overlap.right) == (0, 1)


def test_a_failed_sample_is_missed_by_every_method() -> None:
    results = [make([0, -1], [0.9, 0.1]), make([0, 0, -1, 1], None, "s1")]
    rows = [
        summarise_keywords(results, 0.3),
        summarise_chooser(results, "all words", lambda words: np.zeros(len(words), np.int64)),
    ]
    for row in rows:
        assert (row.samples, row.failed) == (2, 1)
        assert (row.word.true, row.word.right) == (4, 1)
        assert (row.phrase.true, row.word.recall) == (3, 0.25)
    assert [row.word.chosen for row in rows] == [1, 2]
    assert (rows[0].lam, rows[1].lam, rows[1].method) == (0.3, None, "all words")


def test_a_chooser_may_part_touching_phrases() -> None:
    row = summarise_chooser([make([0, 0, 1], [0.0] * 3)], "parted", lambda words: np.array([5, 5, 6]))
    assert (row.phrase.chosen, row.phrase.right) == (2, 2)


def test_a_words_score_is_its_best_tokens() -> None:
    scores = word_scores(np.array([0.2, 0.7, 0.4, 0.1]), np.array([0, 0, 2, 2]), 4)
    np.testing.assert_allclose(scores, [0.7, 0, 0.4, 0])


def test_threshold() -> None:
    np.testing.assert_array_equal(choose(np.array([0.1, 0.3, 0.31]), 0.3), [-1, -1, 0])
    with pytest.raises(ValueError, match="got 1"):
        choose(np.array([0.1]), 1.5)


def test_words_of_pieces() -> None:
    pieces = [
        Piece(text="we see"),
        Piece(text="the sky", object=1),
        Piece(text="two rings", object=1),
        Piece(text=" ."),
    ]
    words, truth = words_of(pieces)
    assert words == ("we", "see", "the", "sky", "two", "rings", ".")
    assert truth.tolist() == [-1, -1, 1, 1, 2, 2, -1]  # two phrases of one object stay two


def test_sweep_falls_in_recall() -> None:
    rng = np.random.default_rng(0)
    results = [make(rng.integers(-1, 2, 20).tolist(), rng.random(20).tolist(), str(k)) for k in range(6)]
    rows = sweep_keywords(results)
    recalls = [row.word.recall for row in rows]
    assert recalls == sorted(recalls, reverse=True) and recalls[0] > recalls[-1]
    assert [row.lam for row in rows] == sorted({row.lam for row in rows})
    at = {row.lam: row for row in rows}
    assert at[0.3] == summarise_keywords(results, 0.3, draws=0)


def test_a_row_names_all_the_data_it_was_made_of() -> None:
    here, there = make([0], [0.9]), replace(make([0], [0.1]), dataset="shifted-png")
    (row, pooled) = (summarise_keywords(texts, 0.3) for texts in ([here], [here, there]))
    assert (row.dataset, row.split, row.word.right) == ("scenes-png", "val", 1)
    assert (pooled.dataset, pooled.split, pooled.samples) == ("scenes-png + shifted-png", "val", 2)


def test_nothing_to_measure() -> None:
    assert summarise_keywords([], 0.3) is None
    assert sweep_keywords([]) == []


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"s0.*\[2, 3\]"):
        make([0, 1], [0.1, 0.2, 0.3])
