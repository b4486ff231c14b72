"""Average recall against the sum it stands for, and which phrases belong to which group."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluate.png import CURVE, recall_at, summarise_png

STEP = 1e-5


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
    (row,) = summarise_png([make_object(*c, image_id=str(k)) for k, c in enumerate(counts)])
    ious = np.array([i / u for i, u, _ in counts])
    assert row.groups["all"].average_recall.value == pytest.approx(summed_recall(ious), abs=STEP)


def test_groups(make_object) -> None:
    results = [
        make_object(10, 10, 10, is_thing=True, plural=False),
        make_object(6, 10, 10, is_thing=True, plural=True),
        make_object(4, 10, 10, is_thing=False, plural=False),
        make_object(2, 10, 10, is_thing=False, plural=True),  # plural: a thing, whatever its segments are
    ]
    (row,) = summarise_png(results)
    values = {name: (group.objects, group.average_recall.value) for name, group in row.groups.items()}
    assert values == {
        "all": (4, pytest.approx(0.55)),
        "thing": (3, pytest.approx(0.6)),
        "stuff": (1, pytest.approx(0.4)),
        "singular": (2, pytest.approx(0.7)),
        "plural": (2, pytest.approx(0.4)),
    }
    assert row.protocol == "png"


def test_a_failed_phrase_has_iou_0_in_its_groups(make_object, make_missed) -> None:
    (row,) = summarise_png([make_object(8, 10, 10), make_missed(10, is_thing=False)])
    assert row.groups["all"].average_recall.value == pytest.approx(0.4)
    assert row.groups["stuff"].average_recall.value == 0
    assert {name: group.failed for name, group in row.groups.items()} == {
        "all": 1,
        "thing": 0,
        "stuff": 1,
        "singular": 1,
        "plural": 0,
    }


def test_a_group_without_phrases_has_no_value(make_object) -> None:
    (row,) = summarise_png([make_object(8, 10, 10)])
    assert (row.groups["plural"].objects, row.groups["plural"].average_recall, row.groups["plural"].recall) == (
        0,
        None,
        (),
    )


def test_recall_curve_by_a_loop() -> None:
    ious = np.array([0.0, 0.1, 0.5, 0.5, 0.98, 1.0])  # some lie on a threshold
    assert recall_at(ious) == pytest.approx([sum(i >= t for i in ious) / 6 for t in CURVE])
    assert recall_at(ious, (0.5, 0.500001)) == pytest.approx((4 / 6, 2 / 6))
