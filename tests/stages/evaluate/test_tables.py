"""Tables are pivots: every measure is in one cell, what is absent says why, what is not known yet gets a table too."""

from __future__ import annotations

import pytest

from stages.evaluate.evaluation import Evaluation
from stages.evaluate.published import published
from stages.evaluate.tables import Section, markdown, percent, sections
from tests.stages.evaluate.made_up import (
    BREAKDOWN,
    LAMS,
    NO_JAVA,
    everything,
    gcg,
    keywords,
    measure,
    png,
    reasonseg,
    res,
)


def section(*measures, **options) -> Section:
    (found,) = sections(measures, **options)
    return found


def shown(each: Section, **of: str) -> list[tuple[str, ...]]:
    """Method and values of the main table's own lines."""
    return [
        (row.method, *(percent(cell.value.value if cell.value else None) for cell in row.cells))
        for row in each.main.rows
        if not row.published and all(getattr(row, name) == value for name, value in of.items())
    ]


def test_every_measure_is_in_the_cell_of_its_row_and_column() -> None:
    measures = everything().measures
    for each in measures:
        found = next(s for s in sections(measures, finals=False) if s.protocol == each.protocol)
        cells = [
            row.cells[k].value
            for table in (found.main, found.breakdown)
            if table
            for row in table.rows
            for k, (group, metric) in enumerate(table.keys)
            if (row.dataset, row.split, row.method, group or row.group, metric)
            == (each.dataset, each.split, each.method, each.group, each.metric)
        ]
        assert cells == [each.value]  # once, whatever the table's shape


def test_res_has_a_row_per_method_and_its_groups_in_a_table_of_their_own() -> None:
    found = section(*res(), *res(split="testA", base=0.6))
    assert found.main.columns == ("cIoU", "mIoU", *(f"P@0.{t}" for t in range(5, 10))) and not found.main.grouped
    assert shown(found, split="testA") == [
        ("refined", "60.0", "62.0", "70.0", "62.0", "54.0", "46.0", "38.0"),
        ("coarse", "48.0", "50.0", "58.0", "50.0", "42.0", "34.0", "26.0"),
    ]
    assert {(row.images, row.items, row.failed) for row in found.main.rows if not row.published} == {(40, 90, 2)}
    assert found.breakdown is not None and found.breakdown.grouped
    ours = [row for row in found.breakdown.rows if row.split == "val"]
    assert [row.group for row in ours] == list(BREAKDOWN) and {row.method for row in ours} == {"refined"}
    (coarse,) = sections([each for each in res() if each.method == "coarse"])
    assert coarse.breakdown is not None and {row.method for row in coarse.breakdown.rows} == {"coarse"}


def test_png_has_its_usual_groups_as_columns() -> None:
    found = section(*png())
    assert found.main.columns == ("all", "thing", "stuff", "singular", "plural")
    assert shown(found)[0] == ("refined", "85.0", "83.0", "81.0", "79.0", "–")
    assert found.breakdown is not None and found.breakdown.columns == ("average recall",)
    assert [row.group for row in found.breakdown.rows] == list(BREAKDOWN)


def test_keywords_have_columns_of_three_levels_and_the_runs_threshold_only() -> None:
    found = section(*keywords(), lam=0.3)
    assert found.main.columns[:3] == ("word precision", "word recall", "word F1") and len(found.main.columns) == 9
    assert [row[0] for row in shown(found)] == ["selector λ=0.3", "every noun phrase", "lexicon"]
    assert found.breakdown is None
    assert len(shown(section(*keywords()))) == len(LAMS) + 2  # which is the run's is not known


@pytest.mark.parametrize(
    "method", ["selector λ=0.25", "selector (λ = 0.25)", "selector λ=.25", "selector λ=0.2.5", "λ=1"]
)
def test_a_thresholds_spelling(method: str) -> None:
    shown_at = {lam: bool(sections([measure(method=method)], lam=lam)) for lam in (0.25, 0.3)}
    assert shown_at == ({0.25: True, 0.3: False} if "0.25" in method else {0.25: True, 0.3: True})


def test_what_is_absent_says_why() -> None:
    found = section(*gcg())
    (row,) = [row for row in found.main.rows if not row.published]
    assert row.cells[0].value is None and found.notes[row.cells[0].note - 1] == NO_JAVA
    assert [cell.note for cell in row.cells[1:]] == [0] * 5
    text = markdown(Evaluation(run={}, measures=list(gcg())))
    assert "| gcg val | refined | – (1) | 123.4 [121.4, 125.4] |" in text and f"\n1. {NO_JAVA}\n" in f"\n{text}"


def test_protocols_metrics_and_groups_of_the_future_need_no_change() -> None:
    news = {"protocol": "video-qa", "dataset": "clips", "group": "night"}
    found = section(measure("frame_recall", 0.25, **news), measure("recall[org/bert-9]", 0.5, **news))
    assert found.title.title == "video-qa" and found.main.columns == ("frame recall", "recall (bert-9)")
    assert shown(found) == [("refined", "25.0", "50.0")] and found.breakdown is None


def test_published_lines_stand_beside_the_same_data_and_protocol_only() -> None:
    def theirs(*measures) -> set[str]:
        return {row.method for row in section(*measures).main.rows if row.published}

    assert theirs(*res()) == {"F-LMM, LLaVA-1.5-7B", "F-LMM, DeepSeekVL-7B"}
    assert {"LISA-7B, fine-tuned on RES data", "GLaMM", "PixelLM-7B"} <= theirs(*res("res-lisa")) and not theirs(
        *res("res-lisa")
    ) & theirs(*res())
    for other in ({"dataset": "scenes-refcoco"}, {"split": "train"}, {"protocol": "res-first-alone"}):
        assert theirs(*(measure(**other), measure(**other | {"metric": "miou"}))) == set()
    assert theirs(*gcg()) and not theirs(*gcg("gcg-strict"))
    found = section(*res())
    row = next(row for row in found.main.rows if row.method == "F-LMM, LLaVA-1.5-7B")
    assert row.published is not None and row.published.source == "https://arxiv.org/abs/2406.05821"
    assert row.cells[0].value is not None and row.cells[0].value.value == pytest.approx(0.752)
    assert [cell.value for cell in row.cells[1:]] == [None] * 6 and row.cells[0].value.low is None
    reasoning = section(*reasonseg(split="test"))
    assert reasoning.breakdown is not None
    groups = {row.group for row in reasoning.breakdown.rows if row.method.startswith("LISA")}
    assert groups == {"short", "long"}
    without = [each for each in reasonseg(split="test") if each.group == "all"]
    assert {row.split for row in section(*without, *reasonseg()).breakdown.rows} == {"val"}  # type: ignore[union-attr]


def test_published_numbers_are_shares_with_a_source() -> None:
    found = published()
    assert len(found) > 50 and len({(p.protocol, p.dataset, p.split, p.group, p.method) for p in found}) == len(found)
    for each in found:
        assert each.source.startswith("https://") and all(0.1 < value < 1 for value in each.values.values())
        assert each.protocol in ("res-flmm", "res-lisa", "png", "reasonseg", "gcg")
        assert each.dataset in ("refcoco", "refcoco+", "refcocog", "png", "reasonseg", "gcg")


def test_markdown_has_tables_of_even_width_and_one_line_per_row() -> None:
    hostile = [measure(dataset="a|b\nc", method="<x>|", protocol="p|q\n# r"), *everything().measures]
    text = markdown(Evaluation(run={"lam": 0.3}, measures=hostile))
    tables = [table.splitlines() for table in text.split("\n\n") if table.startswith("|")]
    assert len(tables) == 1 + 7 + 4  # main ones, and those of res-flmm, res-lisa, png and reasonseg by group
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "| a\\|b c val | <x>\\| | 50.0 [48.0, 52.0] | 90 | 0 |" in text
    assert "*F-LMM, DeepSeekVL-7B, [published](https://arxiv.org/abs/2406.05821)* | 76.1 |" in text
    assert "6+ words" not in markdown(Evaluation(run={}, measures=hostile), breakdown=False)
