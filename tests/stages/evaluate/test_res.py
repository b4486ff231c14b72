"""RES by hand: what is summed, what a failed sample costs, how rows are grouped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.evaluate.measures import Measure
from stages.evaluate.metrics import intersection_union
from stages.evaluate.res import protocol_of, summarise_res
from stages.evaluate.results import ObjectResult, ObjectTable, write_objects


def values(measures: list[Measure], group: str = "all") -> dict[str, float]:
    """The metrics of one group; what has nothing to measure is left out."""
    return {m.metric: m.value.value for m in measures if m.group == group and m.value is not None}


def test_hand_made_values(make_object) -> None:
    objects = [
        make_object(50, 100, 60),  # IoU 0.5: counts for P@0.5
        make_object(9, 10, 10, image_id="i1"),  # IoU 0.9: counts for P@0.9
        make_object(0, 30, 30, image_id="i2"),  # empty prediction
    ]
    measures = summarise_res(objects)
    first = measures[0]
    assert (first.protocol, first.dataset, first.split, first.method) == ("res-flmm", "refcoco", "val", "refined")
    assert {(m.images, m.items, m.failed) for m in measures if m.group == "all"} == {(3, 3, 0)}
    precision = {"p@0.5": 2 / 3, "p@0.6": 1 / 3, "p@0.7": 1 / 3, "p@0.8": 1 / 3, "p@0.9": 1 / 3}
    assert values(measures) == pytest.approx({"ciou": 59 / 140, "miou": (0.5 + 0.9) / 3} | precision)


def test_a_failed_sample_is_a_miss_that_lowers_both_ious(make_object, make_missed) -> None:
    good = make_object(80, 100, 90)
    measures = summarise_res([good, make_missed(300, sample_id="s1", image_id="i1")])
    assert measures[0].failed == 1
    found = values(measures)
    assert (found["ciou"], found["miou"], found["p@0.5"]) == (pytest.approx(80 / 400), pytest.approx(0.4), 0.5)


def test_a_failed_sample_costs_as_much_as_an_empty_prediction(make_object, make_missed) -> None:
    rest = make_object(80, 100, 90)
    failed, empty = (summarise_res([rest, other]) for other in (make_missed(40), make_object(0, 40, 40)))
    assert [m.value for m in failed] == [m.value for m in empty]


def test_nothing_predicted_where_nothing_is_true_is_right_unless_it_failed(make_object, make_missed) -> None:
    right, missed = values(summarise_res([make_object(0, 0, 0)])), values(summarise_res([make_missed(0)]))
    assert (right["miou"], missed["miou"]) == (1.0, 0.0)
    assert "ciou" not in right  # no pixel to divide by


def test_coarse_and_refined_are_separate(make_object) -> None:
    result = make_object(8, 10, 9, coarse_intersection=2, coarse_union=20)
    assert values(summarise_res([result]))["miou"] == 0.8
    assert values(summarise_res([result], "coarse"))["miou"] == 0.1
    with pytest.raises(ValueError, match="raw"):
        summarise_res([result], "raw")


def test_rows_by_dataset_and_split_in_order(make_object) -> None:
    keys = [("refcoco", "testB"), ("refcoco", "testA"), ("refcocog", "testA"), ("refcoco", "testB")]
    results = [make_object(k, 10, 10, dataset=d, split=s) for k, (d, s) in enumerate(keys)]
    found = [m for m in summarise_res(results) if m.group == "all" and m.metric == "ciou"]
    assert [(m.dataset, m.split, m.items, m.value.value) for m in found] == [
        ("refcoco", "testB", 2, 3 / 20),
        ("refcoco", "testA", 1, 1 / 10),
        ("refcocog", "testA", 1, 2 / 10),
    ]
    assert summarise_res([]) == []


def test_only_expressions_count(make_object) -> None:
    results = [
        make_object(8, 10, 10),
        make_object(1, 10, 10, task="narrative"),
        make_object(1, 10, 10, task="reasoning"),
    ]
    assert values(summarise_res(results))["miou"] == 0.8


def test_the_protocol_says_how_the_expressions_were_seen() -> None:
    assert protocol_of({"sentences": "first", "context": "joined", "limit": None}) == "res-flmm" == protocol_of({})
    assert protocol_of({"sentences": "all", "context": "alone"}) == "res-lisa"
    assert protocol_of({"sentences": "first", "context": "alone"}) == "res-first-alone"
    assert protocol_of({"merged": [{}], "sentences": "first"}) == "res-mixed"
    assert protocol_of({"merged": [{}], "sentences": "first", "context": "joined"}) == "res-flmm"


def test_a_table_in_a_file_gives_the_same(make_object, make_missed, tmp_path: Path) -> None:
    results = [
        make_object(k, 20, 15, image_id=str(k // 2), phrase="the red ring"[: 3 + 4 * (k % 3)], number=k, split=split)
        for k, split in enumerate(["val", "testA"] * 7)
    ]
    results.append(make_missed(9, group="short"))
    table = write_objects(tmp_path / "objects.parquet", iter(results))
    assert list(table) == results and table[3] == results[3] and isinstance(table, ObjectTable)
    assert summarise_res(table, "coarse") == summarise_res(results, "coarse")
    assert [path.name for path in tmp_path.iterdir()] == ["objects.parquet"]


def test_nothing_is_left_of_a_table_that_was_not_finished(make_object, tmp_path: Path) -> None:
    def stopped():
        yield make_object(1, 2, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_objects(tmp_path / "objects.parquet", stopped())
    assert not list(tmp_path.iterdir())


def test_against_a_loop_over_masks(make_object) -> None:
    rng = np.random.default_rng(3)
    predictions, truths = rng.random((2, 40, 12, 10)) < rng.uniform(0.1, 0.9, (2, 40, 1, 1))
    both, either = intersection_union(predictions, truths)
    results = [
        make_object(int(b), int(e), int(t.sum()), image_id=str(k // 3))
        for k, (b, e, t) in enumerate(zip(both, either, truths, strict=True))
    ]
    found = values(summarise_res(results))
    ious = [(p & t).sum() / (p | t).sum() for p, t in zip(predictions, truths, strict=True)]
    assert found.pop("ciou") == pytest.approx((predictions & truths).sum() / (predictions | truths).sum())
    assert found.pop("miou") == pytest.approx(sum(ious) / len(ious))
    for name, share in found.items():
        assert share == sum(iou >= float(name.removeprefix("p@")) for iou in ious) / len(ious)


def test_impossible_counts_are_refused(make_object) -> None:
    for intersection, union, area in ((11, 20, 10), (5, 9, 10), (-1, 10, 10)):
        with pytest.raises(ValueError, match="s0: the refined mask needs 0 <= intersection <= area <= union"):
            make_object(intersection, union, area)
    with pytest.raises(ValueError, match="the coarse mask"):
        make_object(5, 10, 10, coarse_union=3)


def test_results_keep_no_arrays() -> None:
    """Memory must not grow with masks: every field is a number, a flag or a short text."""
    assert set(ObjectResult.__annotations__.values()) <= {"str", "bool", "int", "Task"}
