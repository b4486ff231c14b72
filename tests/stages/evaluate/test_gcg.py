"""GCG's numbers against pycocotools, all assignments and a plain walk; and each fault of the public script by hand."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from manifests.masks import encode
from stages.evaluate.average_precision import average_precision
from stages.evaluate.captions import CaptionScore
from stages.evaluate.gcg import GcgResult, pair_ious, summarise_gcg, tidy
from stages.evaluate.measures import Measure
from stages.evaluate.similarity import TokenF1


def make(ious: Any, said: str, true: str, *, scores: Any = None, image: str = "i0", **changes: Any) -> GcgResult:
    """said, true: phrases with "/" between them."""
    phrases, true_phrases = (tuple(filter(None, text.split("/"))) for text in (said, true))
    given = np.array(ious, np.float64).reshape(len(phrases), len(true_phrases))
    values: dict[str, Any] = {
        "sample_id": image, "dataset": "grandf", "split": "val", "image_id": image, "reference": true, "caption": said,
        "true_phrases": true_phrases, "phrases": phrases, "ious": given,
        "scores": np.ones(len(phrases)) if scores is None else np.array(scores, np.float64),
    }  # fmt: skip
    return GcgResult(**(values | changes))


def no_captions(references: Sequence[str], captions: Sequence[str]) -> dict[str, CaptionScore]:
    return {}


def measures(results: Sequence[GcgResult], *, strict: bool, captions: Any = no_captions) -> dict[str, Measure]:
    found = summarise_gcg(results, similarity=TokenF1(), captions=captions, strict=strict, draws=50)
    return {m.metric: m for m in found}


def numbers(results: Sequence[GcgResult], *, strict: bool) -> tuple[float, float, float]:
    """AP50, mIoU, recall."""
    found = measures(results, strict=strict)
    names = ("ap50[token_f1]" if strict else "ap50", "miou", "recall[token_f1]")
    values = [found[name].value for name in names]
    return tuple(value.value for value in values if value is not None)  # type: ignore[return-value]


# --- against pycocotools


def coco_ap50(images: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """COCOeval's AP50 of (scores [p], predicted [p, h, w], true [t, h, w])."""
    names = [f"image {k:02}" for k in range(len(images))]
    truth, found, number = [], [], 0
    for name, (scores, predicted, true) in zip(names, images, strict=True):
        for mask in true:
            number += 1
            truth.append({"id": number, "image_id": name, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
                          "segmentation": encode(mask)})  # fmt: skip
        found += [
            {"image_id": name, "category_id": 1, "segmentation": encode(mask), "score": float(score)}
            for score, mask in zip(scores, predicted, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        known = [
            {"id": n, "height": true.shape[1], "width": true.shape[2]}
            for n, (_, _, true) in zip(names, images, strict=True)
        ]
        gt.dataset = {"images": known, "categories": [{"id": 1}], "annotations": truth}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


_MASKS = st.integers(0, 4).flatmap(lambda n: arrays(bool, (n, 3, 3), elements=st.booleans()))
_TRUE = st.integers(0, 3).flatmap(lambda n: arrays(bool, (n, 3, 3), elements=st.booleans()))
_SCORE = st.sampled_from([0.1, 0.5, 0.5, 0.9, 1.0])


@st.composite
def _images(draw: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A few images of small masks, many of them with equal IoU and equal scores; at least one of each kind."""
    images = []
    for _ in range(draw(st.integers(1, 4))):
        predicted, true = draw(_MASKS), draw(_TRUE)
        true = true[true.any(axis=(1, 2))] if len(true) else true
        images.append((draw(arrays(np.float64, len(predicted), elements=_SCORE)), predicted, true))
    one = np.ones((1, 3, 3), bool)
    return [*images, (np.array([0.5]), one, one)]


@settings(max_examples=60, deadline=None)
@given(_images())
def test_ap50_is_pycocotools(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    ranked = [(scores, pair_ious(predicted, true)) for scores, predicted, true in images]
    assert average_precision(ranked) == pytest.approx(coco_ap50(images), abs=1e-12)
    equal = [(np.ones_like(scores), predicted, true) for scores, predicted, true in images]
    records = [
        make(pair_ious(predicted, true), "/".join("x" * len(predicted)), "/".join("x" * len(true)),
             scores=scores, image=f"image {k:02}")
        for k, (scores, predicted, true) in enumerate(images)
    ]  # fmt: skip
    for order in (records, records[::-1]):  # the order of the records does not matter, that of the image ids does
        assert numbers(order, strict=False)[0] == pytest.approx(coco_ap50(equal), abs=1e-12)
        assert numbers(order, strict=True)[0] == pytest.approx(coco_ap50(images), abs=1e-12)


def test_ap50_of_many_predictions_in_an_image_and_of_no_truth() -> None:
    mask = np.ones((1, 2, 2), bool)
    crowd = (np.linspace(1, 0, 130), np.concatenate([np.zeros((129, 2, 2), bool), mask]), mask)
    ranked = [(scores, pair_ious(predicted, true)) for scores, predicted, true in (crowd,)]
    assert average_precision(ranked) == coco_ap50([crowd]) == 0  # the right one is the 130th
    assert average_precision([(np.ones(1), np.zeros((1, 0)))]) is None


# --- against all assignments, and a walk through sorted pairs


_IOU = st.sampled_from([0.0, 0.0, 0.2, 0.5, 0.6, 0.7, 0.9, 1.0])
_WORDS = st.sampled_from(["red ring", "the red ring", "blue star", "sky"])


@st.composite
def _records(draw: Any, distinct: bool = False) -> list[GcgResult]:
    records = []
    for k in range(draw(st.integers(1, 3))):
        said, true = (draw(st.lists(_WORDS, min_size=m, max_size=4)) for m in (0, 1))
        ious = draw(arrays(np.float64, (len(said), len(true)), elements=_IOU))
        if distinct:
            ious = np.where(ious > 0, ious - np.arange(ious.size).reshape(ious.shape) * 1e-4, 0)
        records.append(make(ious, "/".join(said), "/".join(true), image=str(k)))
    return records


def assignments(record: GcgResult) -> list[list[tuple[int, int]]]:
    """Every way to give each phrase a truth of its own, or none."""
    p, t = record.ious.shape
    return [
        [(row, column) for row, column in enumerate(chosen) if column < t]
        for chosen in set(permutations([*range(t), *[t] * p], p))
    ]


def alike(one: str, other: str) -> bool:
    return float(TokenF1()([one], [other])[0, 0]) >= 0.5


@settings(max_examples=100, deadline=None)
@given(_records())
def test_strict_is_the_best_of_all_assignments(records: list[GcgResult]) -> None:
    total, hits, truths = 0.0, 0, sum(len(r.true_phrases) for r in records)
    for r in records:
        ways = assignments(r)
        total += max(sum(r.ious[pair] for pair in way) for way in ways)
        hits += max(sum(r.ious[p, t] >= 0.5 and alike(r.phrases[p], r.true_phrases[t]) for p, t in way) for way in ways)
    _, miou, recall = numbers(records, strict=True)
    assert (miou, recall) == (pytest.approx(total / truths), pytest.approx(hits / truths))


@settings(max_examples=100, deadline=None)
@given(_records(distinct=True))
def test_public_is_a_walk_through_pairs_by_falling_iou(records: list[GcgResult]) -> None:
    means, hits, truths = [], 0, sum(len(r.true_phrases) for r in records)
    for r in records:
        pairs = sorted(product(*map(range, r.ious.shape)), key=lambda pair: -r.ious[pair])
        taken: list[tuple[int, int]] = []
        for p, t in pairs:
            if r.ious[p, t] > 0 and all(p != a and t != b for a, b in taken):
                taken.append((p, t))
        means.append(np.mean([r.ious[pair] for pair in taken]) if taken else 0)
        for p, t in taken:
            if r.ious[p, t] < 0.5 or not alike(r.phrases[p], r.true_phrases[t]):
                break
            hits += 1
    _, miou, recall = numbers(records, strict=False)
    assert (miou, recall) == (pytest.approx(np.mean(means)), pytest.approx(hits / truths))


def test_iou_of_pairs_by_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.random((3, 5, 7)) > 0.5, rng.random((2, 5, 7)) > 0.3
    expected = [[(p & t).sum() / (p | t).sum() for t in truth] for p in predicted]
    np.testing.assert_allclose(pair_ious(predicted, truth), expected)
    assert pair_ious(np.zeros((0, 5, 7), bool), truth).shape == (0, 2)
    with pytest.raises(TypeError, match="bool"):
        pair_ious(predicted.astype(float), truth)


# --- the faults, by the numbers of the module's docstring


def test_fault_1_recall_ends_at_the_first_pair_that_is_not_alike() -> None:
    record = make([[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7]], "a cat/the ring/the star", "a dog/ring/star")
    assert numbers([record], strict=False)[2] == 0
    assert numbers([record], strict=True)[2] == pytest.approx(2 / 3)


def test_faults_2_and_3_greedy_pairs() -> None:
    record = make([[0.8, 0.7], [0.6, 0.0]], "ring/ring", "ring/ring")
    assert numbers([record], strict=False)[1:] == (0.8, 0.5)
    assert numbers([record], strict=True)[1:] == (pytest.approx((0.7 + 0.6) / 2), 1.0)


def test_fault_4_a_truth_that_nothing_touches_is_missed() -> None:
    record = make([[0.8, 0, 0]], "ring", "ring/star/sky")
    assert numbers([record], strict=False)[1] == 0.8
    assert numbers([record], strict=True)[1] == pytest.approx(0.8 / 3)


def test_fault_5_every_phrase_counts_the_same() -> None:
    records = [make([[0.9]], "ring", "ring"), make(np.eye(3) * 0.5, "a/b/c", "a/b/c", image="i1")]
    assert numbers(records, strict=False)[1] == pytest.approx((0.9 + 0.5) / 2)
    assert numbers(records, strict=True)[1] == pytest.approx((0.9 + 3 * 0.5) / 4)


def test_fault_6_the_names_of_the_images_decide_ap50() -> None:
    def pair(good: str, bad: str) -> list[GcgResult]:
        return [make([[0.9]], "ring", "ring", scores=[0.9], image=good),
                make([[0.1]], "ring", "ring", scores=[0.2], image=bad)]  # fmt: skip

    lucky, unlucky = pair("a", "b"), pair("b", "a")
    assert numbers(lucky, strict=False)[0] > numbers(unlucky, strict=False)[0]
    assert numbers(lucky, strict=True)[0] == numbers(unlucky, strict=True)[0] == numbers(lucky, strict=False)[0]


def test_fault_7_ap50_does_not_read_the_phrase() -> None:
    record = make([[0.9]], "a cat", "the ring")
    assert numbers([record], strict=False)[0] == 1
    assert numbers([record], strict=True)[0] == 0


def test_faults_8_and_9_captions_are_tidied_on_one_side_and_lose_spaces() -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def scorer(references: Sequence[str], captions: Sequence[str]) -> dict[str, CaptionScore]:
        seen.append((list(references), list(captions)))
        return {}

    record = make([[1]], "x", "x", reference="'<p>a dog</p> [SEG] runs'", caption="'<p>a dog</p> [SEG]\nruns'")
    for strict in (False, True):
        measures([record], strict=strict, captions=scorer)
    assert seen == [
        (["'<p>a dog</p> [SEG] runs'"], ["a dog runs"]),
        (["a dog runs"], ["a dog runs"]),
    ]
    assert tidy("a dog\nruns") == "a dogruns" and tidy("a dog\nruns", strict=True) == "a dog runs"


def test_both_agree_where_nothing_is_wrong() -> None:
    records = [make(np.eye(2), "ring/star", "the ring/a star", image=str(k)) for k in range(3)]
    assert numbers(records, strict=False) == numbers(records, strict=True) == (1, 1, 1)


# --- what the measures say


def test_a_failed_sample_is_missed_by_every_metric() -> None:
    good = make(np.eye(2), "ring/star", "ring/star")
    what = {"dataset": "grandf", "split": "val", "reference": "it", "true_phrases": ("ring", "star", "sky")}
    failed = GcgResult.missed(sample_id="i1", image_id="i1", **what)  # type: ignore[arg-type]
    said: list[str] = []

    def scorer(references: Sequence[str], captions: Sequence[str]) -> dict[str, CaptionScore]:
        said.extend(captions)
        return {"meteor": CaptionScore(value=0.25), "cider": CaptionScore(value=None, absent="no Java: apt install x")}

    for strict, miou in ((False, 0.5), (True, 0.4)):
        found = measures([good, failed], strict=strict, captions=scorer)
        assert found["miou"].value is not None and found["miou"].value.value == miou
        assert found["recall[token_f1]"].value is not None and found["recall[token_f1]"].value.value == 0.4
        ap = found["ap50[token_f1]" if strict else "ap50"]
        assert ap.value is not None and ap.value.value == pytest.approx(41 / 101)  # recalls 0, .01, … .4
        assert (ap.items, ap.failed, ap.images, ap.value.low) == (5, 3, 2, None)
        assert found["recall[token_f1]"].value.low is not None
        assert (found["meteor"].items, found["meteor"].failed, found["meteor"].absent) == (2, 1, "")
        assert found["cider"].value is None and "apt install" in found["cider"].absent
        assert {m.protocol for m in found.values()} == {"gcg-strict" if strict else "gcg"}
    assert said == ["ring/star", "", "ring/star", ""]


def test_nothing_was_said_at_all() -> None:
    for strict in (False, True):
        assert numbers([make([], "", "ring/star")], strict=strict) == (0, 0, 0)
    assert summarise_gcg([], similarity=TokenF1(), captions=no_captions) == []


def test_splits_stay_apart_and_the_method_is_named() -> None:
    records = [make([[1]], "x", "x", split=split) for split in ("test", "val", "test")]
    found = summarise_gcg(records, similarity=TokenF1(), captions=no_captions, method="coarse")
    assert [(m.split, m.items) for m in found if m.metric == "miou"] == [("test", 2), ("val", 1)]
    assert {m.method for m in found} == {"coarse"}


def test_records_that_can_not_be() -> None:
    with pytest.raises(ValueError, match=r"i0: 2 phrases and 1 true ones need .* got \[1\] and \[2, 1\]"):
        make([[0.1], [0.2]], "a/b", "c", scores=[1])
    with pytest.raises(ValueError, match="finite"):
        make([[0.1]], "a", "c", scores=[float("nan")])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        make([[float("nan")]], "a", "c")
    with pytest.raises(ValueError, match="failed sample"):
        make([[0.5]], "a", "c", failed=True)


def test_a_caption_of_a_million_brackets_costs_no_quadratic_time() -> None:
    assert tidy("<" * 10**6) == "<" * 10**6 and tidy("<" * 10**6 + "> a") == "a"
