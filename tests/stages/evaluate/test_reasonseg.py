"""ReasonSeg by hand: nothing that is there, nothing that is found, groups, the variants by name."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluate.reasonseg import summarise_reasonseg


@pytest.fixture
def make(make_object):
    return lambda *counts, **changes: make_object(*counts, **{"task": "reasoning", "group": "long"} | changes)


def values(measures, group="all"):
    return {m.metric: m.value.value for m in measures if m.group == group}


def test_by_a_loop_over_images(make) -> None:
    rng = np.random.default_rng(0)
    union = rng.integers(1, 500, 30)
    area = rng.integers(0, union + 1)
    both = rng.integers(0, area + 1)
    pixels = rng.integers(500, 5000, 30)
    counts = [(int(i), int(u), int(a)) for i, u, a in zip(both, union, area, strict=True)]
    found = values(summarise_reasonseg([
        make(*c, pixels=int(p), image_id=str(k)) for k, (c, p) in enumerate(zip(counts, pixels, strict=True))
    ]))  # fmt: skip
    assert found["giou"] == pytest.approx(sum(i / u for i, u, _ in counts) / 30)
    assert found["ciou"] == pytest.approx(sum(i for i, _, _ in counts) / sum(u for _, u, _ in counts))
    shares = [(i / p, u / p) for (i, u, _), p in zip(counts, pixels, strict=True)]
    assert found["ciou_normalised"] == pytest.approx(sum(i for i, _ in shares) / sum(u for _, u in shares))
    assert found["giou_flmm"] == found["giou"]  # no union is empty


def test_nothing_there_and_nothing_found_is_right_in_lisas_giou_only(make, make_missed) -> None:
    found = values(summarise_reasonseg([make(0, 0, 0), make(5, 10, 10)]))
    assert (found["giou"], found["giou_flmm"], found["ciou"]) == (0.75, 0.25, 0.5)
    unanswered = values(summarise_reasonseg([make_missed(0, task="reasoning"), make(5, 10, 10)]))
    assert unanswered["giou"] == 0.25


def test_short_and_long_questions(make) -> None:
    measures = summarise_reasonseg([make(5, 10, 10), make(9, 10, 10, group="short"), make(7, 10, 10)])
    assert values(measures)["giou"] == pytest.approx(0.7)
    assert values(measures, "short")["giou"] == 0.9 and values(measures, "long")["giou"] == pytest.approx(0.6)
    assert {(m.group, m.items) for m in measures} == {("all", 3), ("short", 1), ("long", 2)}


def test_expressions_are_none_of_it(make) -> None:
    assert summarise_reasonseg([make(5, 10, 10, task="referring")]) == []
