"""Comparisons: a mark comes from intervals alone; what differs, and what can not be compared, is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.compare import (
    Comparison,
    compare,
    comparison_json,
    comparison_markdown,
    is_comparison,
    write_comparison,
)
from stages.evaluate.evaluation import Evaluation
from tests.stages.evaluate.made_up import everything, gcg, keywords, measure, png, res


def of(*measures: Any, text_models: dict | None = None, **run: Any) -> Evaluation:
    return Evaluation(run=run, measures=measures, text_models=text_models or {})


def marks(*intervals: tuple[float, float | None, float | None]) -> list[str]:
    """The marks of runs with these (value, low, high)."""
    values = [Estimate(value=value, low=low, high=high) for value, low, high in intervals]
    runs = {str(k): of(replace(measure(dataset="d"), value=value)) for k, value in enumerate(values)}
    return [row.cells[0].mark for row in compare(runs).sections[0].main.rows]


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.5, 0.4, 0.6), (0.7, 0.61, 0.8)], ["", "best"]),
        ([(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)], ["near", "near"]),  # they touch
        ([(0.5, 0.4, 0.6), (0.7, 0.55, 0.8), (0.2, 0.1, 0.3)], ["near", "near", ""]),
        ([(0.5, 0.4, 0.6), (0.5, 0.4, 0.6)], ["near", "near"]),
        ([(0.5, 0.1, 0.9), (0.6, 0.58, 0.62), (0.55, 0.5, 0.57)], ["near", "near", ""]),
        ([(0.5, 0.4, 0.6), (0.9, None, None)], ["", ""]),  # nobody knows how sure the other is
        ([(0.5, 0.4, 0.6)], [""]),
    ],
)
def test_the_best_is_marked_where_intervals_do_not_overlap(intervals: list, expected: list[str]) -> None:
    assert marks(*intervals) == expected
    assert marks(*reversed(intervals)) == expected[::-1]


def test_absent_values_and_other_objects_are_not_ranked() -> None:
    runs = {"a": of(measure(value=0.9, items=10)), "b": of(measure(value=0.1, items=11))}
    assert {cell.mark for row in compare(runs).sections[0].main.rows for cell in row.cells} == {""}
    runs = {"a": of(measure(value=0.9)), "b": of(measure(value=None, absent="why")), "c": of(measure(value=0.1))}
    found = compare(runs).sections[0]
    assert [row.cells[0].mark for row in found.main.rows if not row.published] == ["best", "", ""]
    assert found.notes == ("why",) and found.main.rows[1].cells[0].note == 1


def names(comparison: Comparison, protocol: str) -> list[str]:
    found = next(each for each in comparison.sections if each.protocol == protocol)
    return list(dict.fromkeys(row.method for row in found.main.rows if not row.published))


def test_rows_are_runs_with_their_final_methods() -> None:
    unrefined = [each for each in (*res(), *png(dataset="png")) if each.method == "coarse"]
    runs = {
        "coarse": of(*res(), *png(dataset="png"), *keywords(), lam=0.3),  # a name like a method's
        "selector": of(*unrefined, *keywords(), lam=0.35),
    }
    comparison = compare(runs)
    assert names(comparison, "res-flmm") == names(comparison, "png") == ["coarse", "selector (coarse)"]
    assert names(comparison, "keywords") == ["coarse (λ=0.3)", "selector (λ=0.35)"]
    breakdown = next(each for each in comparison.sections if each.protocol == "res-flmm").breakdown
    assert breakdown is not None
    assert [(row.group, row.method) for row in breakdown.rows][:4] == [
        ("small", "coarse"), ("small", "selector (coarse)"), ("medium", "coarse"), ("medium", "selector (coarse)"),
    ]  # fmt: skip
    assert breakdown.rows[0].cells[0].mark == "best"
    theirs = [row for row in comparison.sections[0].main.rows if row.published]
    assert theirs and {cell.mark for row in theirs for cell in row.cells} == {""}


def test_what_differs_is_listed_by_its_field() -> None:
    identity = {"merge": "mean", "lmm": {"dtype": "bfloat16", "layers": [1, 2]}}
    first = of(lmm="llava", lam=0.3, identity=identity, text_models={"similarity": {"name": "bert"}})
    other = {"merge": "max", "lmm": {"dtype": "bfloat16", "layers": [1, 2, 3]}}
    second = of(lmm="llava", lam=0.4, identity=other, note="x" * 1000)
    found = compare({"a": first, "b": second}).differences
    assert found == {
        "lam": ["0.3", "0.4"],
        "identity.merge": ["mean", "max"],
        "identity.lmm.layers": ["[1, 2]", "[1, 2, 3]"],
        "text model, similarity": ["bert", "nothing"],
        "note": ["nothing", "x" * 120 + " …"],
    }


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (of(measure()), of(measure(), measure(split="testA")), "refcoco testA, res-flmm: not in a"),
        (
            of(measure()),
            of(measure(protocol="res-lisa")),
            "refcoco val, res-flmm: not in b; there is res-lisa, which can not be compared with it",
        ),
        (of(measure()), of(measure(items=91)), "not the same objects (a 90 of 40 images, b 91 of 40 images)"),
        (of(measure()), of(measure(images=41)), "not the same objects (a 90 of 40 images, b 90 of 41 images)"),
        (of(measure()), of(measure(failed=2)), "not as many failed (a 0, b 2); failed ones count as misses"),
        (of(measure(), manifest="1f"), of(measure(), manifest="2e"), "of other manifests"),
        (
            of(*gcg(), text_models={"similarity": "token_f1"}),
            of(*gcg(), text_models={"similarity": "bert"}),
            "texts were read by other models, similarity (a: token_f1; b: bert)",
        ),
    ],
)
def test_what_can_not_be_compared_is_said(first: Evaluation, second: Evaluation, says: str) -> None:
    warnings = compare({"a": first, "b": second}).warnings
    assert any(says in warning for warning in warnings) and len(warnings) <= 2
    assert compare({"a": first, "b": first}).warnings == []


def test_the_files(tmp_path: Path) -> None:
    better = replace(everything(lam=0.35, head="<b>linear</b>"), measures=[*res(base=0.9), *keywords()])
    comparison = compare({"one": everything(), "<i>two</i>": better})
    page = write_comparison(tmp_path / "out", comparison).read_text(encoding="utf-8")
    assert "<i>two</i>" not in page and "<b>linear" not in page and "<script" not in page
    assert '<td class="n best">90.0<i>★</i><small>88.0 – 92.0</small></td>' in page
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert found == comparison_json(comparison) and list(found["comparison"]) == ["one", "<i>two</i>"]
    ciou = [row for row in found["results"] if (row["metric"], row["group"], row["split"]) == ("ciou", "all", "val")]
    assert [(row["run"], round(row["value"], 2), row["mark"]) for row in ciou if row["dataset"] == "refcoco"][:2] == [
        ("one", 0.7, ""), ("<i>two</i>", 0.9, "best"),
    ]  # fmt: skip
    assert not any("F-LMM" in row["run"] for row in found["results"])  # what others published is not a run
    assert (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8") == comparison_markdown(comparison)
    assert "| refcoco val | <i>two</i> | **90.0 [88.0, 92.0]** |" in comparison_markdown(comparison)
    assert is_comparison(tmp_path / "out") and not is_comparison(tmp_path)


def test_foreign_folders_are_not_comparisons(tmp_path: Path) -> None:
    for foreign in ("[]", '{"schema": 1}', "not JSON", "[" * 100_000):
        (tmp_path / "comparison.json").write_text(foreign)
        assert not is_comparison(tmp_path)
