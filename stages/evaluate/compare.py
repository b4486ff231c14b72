"""Several evaluations beside each other: the same tables with runs as rows, what differs between them, and warnings.

    comparison = compare({"a": read_metrics(Path("results/a")), "b": read_metrics(Path("results/b"))})
    write_comparison(Path("results/compared"), comparison)     # comparison.html, comparison.md, comparison.json

Of every run the final methods are compared: refined masks (coarse ones of a head without a refiner), the keyword
selector at the run's λ. A value is marked as the best only where its interval is above those of all other runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.measures import Measure
from stages.evaluate.page import render
from stages.evaluate.report import write_whole
from stages.evaluate.tables import (
    LAMBDA,
    Cell,
    Row,
    Section,
    Table,
    finals_of,
    in_sweep,
    markdown_section,
    markdown_table,
    sections,
)

SCHEMA: Final = 1
FILE: Final = "comparison.json"
MARKS: Final = "★, bold: above the intervals of all other runs. ≈: within the interval of the best."
_SHOWN: Final = 120  # characters of a value that differs
_NOTHING: Final = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """runs: name -> evaluation.  sections: methods are runs, cells are marked.  differences: field of what was run ->
    its value in each run, as text.  warnings: why numbers can not be compared, one line each."""

    runs: Mapping[str, Evaluation]
    sections: Sequence[Section]
    differences: Mapping[str, Sequence[str]]
    warnings: Sequence[str]


def compare(runs: Mapping[str, Evaluation]) -> Comparison:
    """Runs in the order of the rows."""
    finals = {name: _finals(evaluation) for name, evaluation in runs.items()}
    relabelled = [
        replace(each, method=_label(name, each.method)) for name, measures in finals.items() for each in measures
    ]
    return Comparison(
        runs=runs,
        sections=[_marked(section) for section in sections(relabelled, finals=False)],
        differences=_differences(runs),
        warnings=[*_warnings(finals), *_other_texts(runs)],
    )


def _finals(evaluation: Evaluation) -> list[Measure]:
    """The measures of final methods."""
    lam = evaluation.run.get("lam")
    shown = [each for each in evaluation.measures if not in_sweep(each.method, lam)]
    by_protocol: dict[str, list[Measure]] = {}
    for each in shown:
        by_protocol.setdefault(each.protocol, []).append(each)
    return [each for each in shown if each.method in finals_of(by_protocol[each.protocol], each)]


def _label(run: str, method: str) -> str:
    """What a row is called: the run; with its method, where that is not the usual one."""
    found = LAMBDA.match(method)
    return run if method == "refined" else f"{run} (λ={found[2]})" if found else f"{run} ({method})"


def _marked(section: Section) -> Section:
    breakdown = _mark(section.breakdown) if section.breakdown else None
    return replace(section, main=_mark(section.main), breakdown=breakdown)


def _mark(table: Table) -> Table:
    """The table with marked cells where all rows are of the same objects; rows of one group beside each other."""
    groups = list(dict.fromkeys(row.group for row in table.rows))
    places = list(dict.fromkeys((row.dataset, row.split) for row in table.rows))
    rows = sorted(table.rows, key=lambda row: (places.index((row.dataset, row.split)), groups.index(row.group)))
    marked = []
    for row in rows:
        place = (row.dataset, row.split, row.group)
        rivals = [r for r in rows if (r.dataset, r.split, r.group) == place and not r.published]
        if not row.published and len({(each.images, each.items) for each in rivals}) == 1:
            columns = zip(*(each.cells for each in rivals), strict=True)
            row = replace(row, cells=tuple(_mark_cell(*each) for each in zip(row.cells, columns, strict=True)))
        marked.append(row)
    return replace(table, rows=tuple(marked))


def _mark_cell(cell: Cell, column: Sequence[Cell]) -> Cell:
    """column: the same number of all runs, this one's too. Nothing is marked where an interval is missing."""
    values = [each.value for each in column if each.value is not None]
    if cell.value is None or len(values) < 2 or any(each.low is None or each.high is None for each in values):
        return cell
    best = max(values, key=lambda each: each.value)
    rivals = [each for each in values if each is not best]
    if all(each.high < best.low for each in rivals):  # type: ignore[operator]  # none is None
        return replace(cell, mark="best") if cell.value is best else cell
    return replace(cell, mark="near") if cell.value.high >= best.low else cell  # type: ignore[operator]


def _differences(runs: Mapping[str, Evaluation]) -> dict[str, list[str]]:
    texts = [
        {f"text model, {name}": _told(value) for name, value in each.text_models.items()} for each in runs.values()
    ]
    flat = [_flat({**each.run, **models}) for each, models in zip(runs.values(), texts, strict=True)]
    fields = [field for field in dict.fromkeys(name for each in flat for name in each)]
    found = {field: [each.get(field, _NOTHING) for each in flat] for field in fields}
    return {field: values for field, values in found.items() if len(set(values)) > 1}


def _flat(value: Any, field: str = "") -> dict[str, str]:
    """Every leaf of a JSON value as text, by its path."""
    if isinstance(value, Mapping):
        leaves = [_flat(each, f"{field}.{name}" if field else str(name)) for name, each in value.items()]
        return {name: text for each in leaves for name, text in each.items()}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {field: text if len(text) <= _SHOWN else text[:_SHOWN] + " …"}


def _told(model: Any) -> str:
    """A text model's identity in one line."""
    return ", ".join(_flat(model).values())


def _warnings(finals: Mapping[str, Sequence[Measure]]) -> list[str]:
    """What was not measured in all runs, or not on the same objects."""
    counts: dict[tuple[str, str, str], dict[str, tuple[int, int, int]]] = {}
    for name, measures in finals.items():
        for each in measures:
            place = counts.setdefault((each.dataset, each.split, each.protocol), {})
            images, items, failed = place.get(name, (0, 0, 0))
            place[name] = (max(images, each.images), max(items, each.items), max(failed, each.failed))
    warnings = []
    for (dataset, split, protocol), found in counts.items():
        where = f"{dataset} {split}, {protocol}"
        if missing := [name for name in finals if name not in found]:
            others = sorted(
                p for (d, s, p), runs in counts.items() if (d, s) == (dataset, split) and runs.keys() & set(missing)
            )
            instead = f"; there is {', '.join(others)}, which can not be compared with it" if others else ""
            warnings.append(f"{where}: not in {', '.join(missing)}{instead}")
        if len({count[:2] for count in found.values()}) > 1:
            told = ", ".join(f"{name} {items} of {images} images" for name, (images, items, _) in found.items())
            warnings.append(f"{where}: not the same objects ({told})")
        if len({count[2] for count in found.values()}) > 1:
            told = ", ".join(f"{name} {failed}" for name, (*_, failed) in found.items())
            warnings.append(f"{where}: not as many failed ({told}); failed ones count as misses")
    return warnings


def _other_texts(runs: Mapping[str, Evaluation]) -> list[str]:
    """Other samples under the same names, and texts that were read by other models."""
    warnings = []
    if len({str(each.run.get("manifest")) for each in runs.values()}) > 1:
        warnings.append("the runs are of other manifests: their samples are not the same")
    for name in dict.fromkeys(name for each in runs.values() for name in each.text_models):
        found = {run: _told(each.text_models[name]) for run, each in runs.items() if name in each.text_models}
        if len(set(found.values())) > 1:
            told = "; ".join(f"{run}: {text}" for run, text in found.items())
            warnings.append(f"texts were read by other models, {name} ({told}): what depends on it can not be compared")
    return warnings


def _forests(section: Section) -> list[tuple[str, list[tuple[str, Estimate | None]]]]:
    """The protocol's first number, a picture for each (dataset, split): (title, (run, value) each)."""
    keys = section.main.keys
    chosen = keys.index(section.title.headline) if section.title.headline in keys else 0
    ours = [row for row in section.main.rows if not row.published]
    return [
        (
            f"{section.main.columns[chosen]}, {dataset} {split}",
            [(row.method, row.cells[chosen].value) for row in ours if (row.dataset, row.split) == (dataset, split)],
        )
        for dataset, split in dict.fromkeys((row.dataset, row.split) for row in ours)
    ]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json: a result per run and number, values in [0, 1]."""
    return {
        "schema": SCHEMA,
        "comparison": {name: dict(each.run) for name, each in comparison.runs.items()},
        "results": [
            _result(section, table, row, k)
            for section in comparison.sections
            for table in (section.main, section.breakdown)
            for row in (table.rows if table else ())
            for k in range(len(row.cells))
            if table and row.cells[k].value and not row.published
        ],
        "differences": {field: list(values) for field, values in comparison.differences.items()},
        "warnings": list(comparison.warnings),
    }


def _result(section: Section, table: Table, row: Row, k: int) -> dict[str, Any]:
    group, metric = table.keys[k]
    value = row.cells[k].value
    assert value is not None
    return {
        "protocol": section.protocol, "dataset": row.dataset, "split": row.split, "group": group or row.group,
        "metric": metric, "run": row.method, "value": value.value, "low": value.low, "high": value.high,
        "mark": row.cells[k].mark, "images": row.images, "items": row.items, "failed": row.failed,
    }  # fmt: skip


def comparison_markdown(comparison: Comparison) -> str:
    """Warnings, the main tables, what differs."""
    parts = [f"- **not comparable**: {warning}\n" for warning in comparison.warnings]
    for section in comparison.sections:
        parts += markdown_section(section, breakdown=False)
    parts.append(f"{MARKS}\n")
    if comparison.differences:
        head = ["differs", *comparison.runs]
        lines = [[field, *values] for field, values in comparison.differences.items()]
        parts.append(markdown_table(head, lines, len(head)))
    return "\n".join(parts)


def write_comparison(out_dir: Path, comparison: Comparison) -> Path:
    """Write page, Markdown and, last, JSON into `out_dir` (made if missing); returns the page's path."""
    numbers = json.dumps(comparison_json(comparison), indent=2, allow_nan=False) + "\n"
    text = comparison_markdown(comparison)
    html = render(
        "comparison.html.j2",
        c=comparison,
        marks=MARKS,
        sections=[(each, _forests(each)) for each in comparison.sections],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / FILE).unlink(missing_ok=True)
    page = write_whole(out_dir / "comparison.html", html)
    write_whole(out_dir / "comparison.md", text)
    write_whole(out_dir / FILE, numbers)
    return page


def is_comparison(folder: Path) -> bool:
    """Did `write_comparison` fill this folder?"""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"schema", "comparison", "results"} <= record.keys()
