"""RES by hand: what is summed, what a failed sample costs, how rows are grouped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stages.evaluate.metrics import intersection_union
from stages.evaluate.res import summarise_res
from stages.evaluate.results import ObjectResult


def test_hand_made_values(make_object) -> None:
    objects = [
        make_object(50, 100, 60),  # IoU 0.5: counts for P@0.5
        make_object(9, 10, 10, image_id="i1"),  # IoU 0.9: counts for P@0.9
        make_object(0, 30, 30, image_id="i2"),  # empty prediction
    ]
    (row,) = summarise_res(objects)
    assert (row.protocol, row.dataset, row.split, row.which) == ("flmm", "refcoco", "val", "refined")
    assert (row.images, row.objects, row.failed) == (3, 3, 0)
    assert row.ciou.value == pytest.approx(59 / 140)
    assert row.miou.value == pytest.approx((0.5 + 0.9) / 3)
    assert row.precision_at == pytest.approx({"0.5": 2 / 3, "0.6": 1 / 3, "0.7": 1 / 3, "0.8": 1 / 3, "0.9": 1 / 3})


def test_a_failed_sample_is_a_miss_that_lowers_both_ious(make_object, make_missed) -> None:
    good = make_object(80, 100, 90)
    (row,) = summarise_res([good, make_missed(300, sample_id="s1", image_id="i1")])
    assert row.failed == 1
    assert row.ciou.value == pytest.approx(80 / 400)
    assert row.miou.value == pytest.approx(0.4)
    assert row.precision_at["0.5"] == 0.5


def test_a_failed_sample_costs_as_much_as_an_empty_prediction(make_object, make_missed) -> None:
    rest = make_object(80, 100, 90)
    (failed,), (empty,) = (summarise_res([rest, other]) for other in (make_missed(40), make_object(0, 40, 40)))
    assert (failed.ciou, failed.miou, failed.precision_at) == (empty.ciou, empty.miou, empty.precision_at)


def test_nothing_predicted_where_nothing_is_true_is_right_unless_it_failed(make_object, make_missed) -> None:
    (right,) = summarise_res([make_object(0, 0, 0)])
    (missed,) = summarise_res([make_missed(0)])
    assert (right.miou.value, missed.miou.value) == (1.0, 0.0)
    assert right.ciou is None  # no pixel to divide by


def test_coarse_and_refined_are_separate(make_object) -> None:
    result = make_object(8, 10, 9, coarse_intersection=2, coarse_union=20)
    assert summarise_res([result])[0].miou.value == 0.8
    assert summarise_res([result], "coarse")[0].miou.value == 0.1
    with pytest.raises(ValueError, match="raw"):
        summarise_res([result], "raw")


def test_rows_by_dataset_and_split_in_order(make_object) -> None:
    keys = [("refcoco", "testB"), ("refcoco", "testA"), ("refcocog", "testA"), ("refcoco", "testB")]
    results = [make_object(k, 10, 10, dataset=d, split=s) for k, (d, s) in enumerate(keys)]
    rows = summarise_res(results)
    assert [(row.dataset, row.split, row.objects) for row in rows] == [
        ("refcoco", "testB", 2),
        ("refcoco", "testA", 1),
        ("refcocog", "testA", 1),
    ]
    assert [row.ciou.value for row in rows] == [3 / 20, 1 / 10, 2 / 10]
    assert summarise_res([]) == []


def test_against_a_loop_over_masks(make_object) -> None:
    rng = np.random.default_rng(3)
    predictions, truths = rng.random((2, 40, 12, 10)) < rng.uniform(0.1, 0.9, (2, 40, 1, 1))
    both, either = intersection_union(predictions, truths)
    results = [
        make_object(int(b), int(e), int(t.sum()), image_id=str(k // 3))
        for k, (b, e, t) in enumerate(zip(both, either, truths, strict=True))
    ]
    (row,) = summarise_res(results)
    ious = [(p & t).sum() / (p | t).sum() for p, t in zip(predictions, truths, strict=True)]
    assert row.ciou.value == pytest.approx((predictions & truths).sum() / (predictions | truths).sum())
    assert row.miou.value == pytest.approx(sum(ious) / len(ious))
    for threshold, share in row.precision_at.items():
        assert share == sum(iou >= float(threshold) for iou in ious) / len(ious)
    assert row.images == 14
    json.dumps(row.precision_at)


def test_impossible_counts_are_refused(make_object) -> None:
    for intersection, union, area in ((11, 20, 10), (5, 9, 10), (-1, 10, 10)):
        with pytest.raises(ValueError, match="s0: the refined mask needs 0 <= intersection <= area <= union"):
            make_object(intersection, union, area)
    with pytest.raises(ValueError, match="the coarse mask"):
        make_object(5, 10, 10, coarse_union=3)


def test_results_keep_no_arrays() -> None:
    """Memory must not grow with masks: every field is a number, a flag or a short text."""
    assert set(ObjectResult.__annotations__.values()) <= {"str", "bool", "int"}
