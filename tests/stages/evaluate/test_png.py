"""Average recall against the sum it stands for, and which phrases belong to which group."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluate.measures import Measure
from stages.evaluate.png import CURVE, GROUPS, recall_at, recall_curves, summarise_png

STEP = 1e-5


@pytest.fixture
def make_object(make_object):
    return lambda *counts, **changes: make_object(*counts, **{"task": "narrative"} | changes)


def kinds(measures: list[Measure]) -> dict[str, Measure]:
    """The measures of PNG's own groups."""
    found = {m.group: m for m in measures if m.group in GROUPS}
    assert list(found) == list(GROUPS) and {m.metric for m in measures} == {"average_recall"}
    return found


def summed_recall(ious: np.ndarray) -> float:
    """Recall at thresholds STEP apart, times STEP: the definition, without any shortcut."""
    thresholds = np.arange(0, 1, STEP)
    hits = np.zeros(len(thresholds))
    for iou in ious:
        hits += iou >= thresholds
    return float((hits / len(ious)).sum() * STEP)


@pytest.mark.parametrize("seed", range(4))
def test_average_recall_is_the_integral(make_object, seed: int) -> None:
    rng = np.random.default_rng(seed)
    union = rng.integers(1, 2000, 60)
    area = rng.integers(0, union + 1)
    intersection = rng.integers(0, area + 1)
    # the ends and an IoU that is a threshold, where a sum is most likely to be off by one
    special = [(0, 7, 7), (7, 7, 7), (1, 2, 1), (3, 10, 5)]
    counts = [*zip(intersection.tolist(), union.tolist(), area.tolist(), strict=True), *special]
    found = kinds(summarise_png([make_object(*c, image_id=str(k)) for k, c in enumerate(counts)]))
    ious = np.array([i / u for i, u, _ in counts])
    assert found["all"].value.value == pytest.approx(summed_recall(ious), abs=STEP)


def test_groups(make_object) -> None:
    results = [
        make_object(10, 10, 10, is_thing=True, plural=False),
        make_object(6, 10, 10, is_thing=True, plural=True),
        make_object(4, 10, 10, is_thing=False, plural=False),
        make_object(2, 10, 10, is_thing=False, plural=True),  # plural: a thing, whatever its segments are
    ]
    found = kinds(summarise_png(results))
    values = {name: (measure.items, measure.value.value) for name, measure in found.items()}
    assert values == {
        "all": (4, pytest.approx(0.55)),
        "thing": (3, pytest.approx(0.6)),
        "stuff": (1, pytest.approx(0.4)),
        "singular": (2, pytest.approx(0.7)),
        "plural": (2, pytest.approx(0.4)),
    }
    assert {m.protocol for m in found.values()} == {"png"}


def test_a_failed_phrase_has_iou_0_in_its_groups(make_object, make_missed) -> None:
    found = kinds(summarise_png([make_object(8, 10, 10), make_missed(10, is_thing=False, task="narrative")]))
    assert found["all"].value.value == pytest.approx(0.4)
    assert found["stuff"].value.value == 0
    failed = {name: measure.failed for name, measure in found.items()}
    assert failed == {"all": 1, "thing": 0, "stuff": 1, "singular": 1, "plural": 0}


def test_a_group_without_phrases_has_no_value(make_object) -> None:
    found = kinds(summarise_png([make_object(8, 10, 10)]))
    assert (found["plural"].items, found["plural"].value) == (0, None)


def test_by_size_and_by_length(make_object) -> None:
    """COCO's 32² and 96² pixels of 640 x 480, whatever the size of the image."""
    phrases = {"a": 31**2, "the b": 32**2, "one two three": 96**2 - 1, "one two three four five six": 96**2}
    results = [make_object(a // 2, a, a, phrase=p) for p, a in phrases.items()]
    results += [make_object(5, 10, 10, pixels=100, phrase="x")]  # a tenth of a small image is large
    found = {m.group: m.items for m in summarise_png(results)}
    assert {name: found[name] for name in ("small", "medium", "large")} == {"small": 1, "medium": 2, "large": 2}
    assert {n: found[n] for n in found if "words" in n} == {"1-2 words": 3, "3-5 words": 1, "6+ words": 1}


def test_a_caption_that_was_given_counts_as_a_narrative_and_an_expression_does_not(make_object) -> None:
    assert summarise_png([make_object(8, 10, 10, task="conversation")])
    assert not summarise_png([make_object(8, 10, 10, task="referring"), make_object(8, 10, 10, task="reasoning")])


def test_curves_are_the_recalls_of_things_and_stuff(make_object) -> None:
    results = [make_object(8, 10, 10), make_object(2, 10, 10, is_thing=False)]
    ((name, lines),) = recall_curves(results, "refined").items()
    assert name == "refcoco val" and list(lines) == ["all", "thing", "stuff"]
    assert dict(lines["thing"])[0.8] == 1 and dict(lines["thing"])[0.82] == 0 and dict(lines["all"])[0.5] == 0.5


def test_recall_curve_by_a_loop() -> None:
    ious = np.array([0.0, 0.1, 0.5, 0.5, 0.98, 1.0])  # some lie on a threshold
    assert recall_at(ious) == pytest.approx([sum(i >= t for i in ious) / 6 for t in CURVE])
    assert recall_at(ious, (0.5, 0.500001)) == pytest.approx((4 / 6, 2 / 6))
