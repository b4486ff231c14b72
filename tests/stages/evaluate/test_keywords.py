"""Keyword metrics against a plain loop over words and phrases."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.masks import encode
from manifests.schema import Object, Piece, Reply, Sample
from stages.evaluate.keywords import (
    SWEEP,
    WordResult,
    choose,
    selector_at,
    summarise_chooser,
    summarise_keywords,
    word_scores,
    words_of,
)
from stages.evaluate.measures import Measure


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


def values(measures: list[Measure]) -> dict[tuple[str, str], float | None]:
    """(group, metric) -> value, of one method's measures."""
    found = {(m.group, m.metric): m.value.value if m.value else None for m in measures}
    assert len(found) == len(measures) == 9 and len({(m.dataset, m.split, m.method) for m in measures}) == 1
    return found


def selector(results: list[WordResult], lam: float = 0.3) -> dict[tuple[str, str], float | None]:
    return values(summarise_keywords(results, lam, sweep=(), draws=0))


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
    found = selector(results, lam)
    for level, (chosen, true, right) in plain_counts(results, lam).items():
        precision, recall = right / chosen if chosen else None, right / true if true else None
        assert (found[level, "precision"], found[level, "recall"]) == (precision, recall)
        if precision is not None and recall is not None:
            f1 = 2 * precision * recall / (precision + recall) if right else 0
            assert found[level, "f1"] == pytest.approx(f1)
        else:
            assert found[level, "f1"] == (0 if chosen or true else None)


def test_runs_do_not_cross_samples() -> None:
    found = selector([make([-1, 0], [0.1, 0.9], "a"), make([0, -1], [0.9, 0.1], "b")])
    assert (found["phrase", "precision"], found["phrase", "recall"]) == (1, 1)


def test_touching_phrases_are_two_in_truth_and_one_when_chosen() -> None:
    found = selector([make([0, 0, 1, 1], [0.9] * 4)])
    assert (found["word", "f1"], found["phrase", "f1"]) == (1, 0)
    assert found["overlap", "f1"] == 0  # exactly a half of each is not more than a half


def test_overlap_forgives_the_article() -> None:
    found = selector([make([0, 0, 0, -1], [0.1, 0.9, 0.9, 0.1])])
    assert (found["phrase", "f1"], found["overlap", "f1"]) == (0, 1)


def test_a_failed_sample_is_missed_by_every_method() -> None:
    results = [make([0, -1], [0.9, 0.1]), make([0, 0, -1, 1], None, "s1")]
    every = summarise_chooser(results, "all words", lambda words: np.zeros(len(words), np.int64))
    for measures, precision in ((summarise_keywords(results, 0.3, sweep=()), 1), (every, 0.5)):
        found = values(measures)
        assert {(m.images, m.items, m.failed, m.protocol) for m in measures} == {(2, 2, 1, "keywords")}
        assert (found["word", "recall"], found["phrase", "recall"]) == (
            0.25,
            pytest.approx(1 / 3 if precision == 1 else 0),
        )
        assert found["word", "precision"] == precision
        assert all(m.value is None or m.value.low is not None for m in measures)
    assert {m.method for m in every} == {"all words"}


def test_a_chooser_may_part_touching_phrases() -> None:
    found = values(summarise_chooser([make([0, 0, 1], [0.0] * 3)], "parted", lambda words: np.array([5, 5, 6])))
    assert found["phrase", "f1"] == 1


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
    measures = summarise_keywords(results, 0.3)
    methods = list(dict.fromkeys(m.method for m in measures))
    assert methods == ["selector λ=0.3", *(selector_at(lam) for lam in SWEEP if lam != 0.3)]
    keys = {(m.method, m.group, m.metric) for m in measures}
    assert len(keys) == len(measures) == 9 * len(SWEEP)  # no number twice
    recall = {m.method: m.value.value for m in measures if m.value and (m.group, m.metric) == ("word", "recall")}
    falling = [recall[selector_at(lam)] for lam in SWEEP]
    assert falling == sorted(falling, reverse=True) and falling[0] > falling[-1]
    with_interval = {m.method for m in measures if m.value is not None and m.value.low is not None}
    assert with_interval == {"selector λ=0.3"}
    assert values(measures[:9]) == selector(results)


def test_splits_stay_apart() -> None:
    here, there = make([0], [0.9]), replace(make([0], [0.1]), dataset="shifted-png")
    measures = summarise_keywords([here, there, here], 0.3, sweep=())
    recalls = [(m.dataset, m.items, m.value.value) for m in measures if m.value and m.metric == "recall"]
    assert recalls == [("scenes-png", 2, 1)] * 3 + [("shifted-png", 1, 0)] * 3


def test_nothing_to_measure() -> None:
    assert summarise_keywords([], 0.3) == [] == summarise_chooser([], "x", lambda words: np.zeros(0))
    assert set(selector([make([-1], [0.1])]).values()) == {None}
    assert selector([make([], [])])["word", "f1"] is None


def test_of_a_sample_and_never_of_the_lmms_own_words() -> None:
    ring = Object(object_id="o", mask=encode(np.ones((2, 2), bool)), is_thing=True, plural=False, category="",
                  phrase="the ring")  # fmt: skip
    sample = Sample(
        sample_id="s", dataset="png", split="val", task="narrative", image_id="i", image_path="i.jpg", height=2,
        width=2, pieces=(Piece(text="the ring", object=0), Piece(text="shines")), objects=(ring,),
    )  # fmt: skip
    result = WordResult.of(sample, np.array([0.2, 0.7, 0.1]))
    assert result.words == ("the", "ring", "shines") and result.truth.tolist() == [0, 0, -1]
    np.testing.assert_allclose(result.scores, [0.2, 0.7, 0.1])
    assert WordResult.of(sample, None).scores is None
    reply = Reply(ids=(5,), words=(0,), text="ring", finished=True)
    with pytest.raises(ValueError, match="own reply"):
        WordResult.of(replace(sample, task="conversation", reply=reply), None)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"s0.*\[2, 3\]"):
        make([0, 1], [0.1, 0.2, 0.3])
