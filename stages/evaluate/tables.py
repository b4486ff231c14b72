"""Tables as pivots of measures: a section per protocol, rows (dataset, split, method), columns metrics.

    for section in sections(evaluation.measures, lam=0.3):
        section.main.columns, section.main.rows     # the protocol's main groups ("all")
        section.breakdown                           # by size of the object, length of the expression, …; or None
    print(markdown(evaluation))

A protocol or metric that this program does not know yet gets a table too, under its own name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.measures import Measure
from stages.evaluate.published import Published, beside
from stages.evaluate.titles import ProtocolTitle, metric_title, protocol_title

LAMBDA: Final = re.compile(r"^(.*\S)\s*\(?λ\s*=\s*(\d+(?:\.\d+)?)\)?$")
"""A method at a threshold of the keyword selector: "selector λ=0.3"."""
Column = tuple[str, str]  # group, metric


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """note: number of the note that says why there is no value, counted from 1; 0 for none.  mark: of a comparison."""

    value: Estimate | None = None
    note: int = 0
    mark: Literal["best", "near", ""] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line. group: "" where groups are columns.  published: whose line it is (without counts), None for ours."""

    dataset: str
    split: str
    method: str
    group: str
    cells: tuple[Cell, ...]
    images: int = 0
    items: int = 0
    failed: int = 0
    published: Published | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """columns: their titles.  keys: their (group, metric), group "" where rows have one, which `grouped` says."""

    columns: tuple[str, ...]
    keys: tuple[Column, ...]
    rows: tuple[Row, ...]
    grouped: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """All of a protocol. notes: why values are absent, each with its cure; then what published lines say."""

    protocol: str
    title: ProtocolTitle
    main: Table
    breakdown: Table | None
    notes: tuple[str, ...]


Key = tuple[str, str, str, str]  # dataset, split, method, group of a row


def sections(measures: Sequence[Measure], *, lam: float | None = None, finals: bool = True) -> list[Section]:
    """A section per protocol, in the order of their first measure.

    lam: the run's threshold; other λ are left out.  finals: break only the final methods down.
    """
    shown = [each for each in measures if not in_sweep(each.method, lam)]
    return [
        _section(protocol, [each for each in shown if each.protocol == protocol], finals)
        for protocol in dict.fromkeys(each.protocol for each in shown)
    ]


def in_sweep(method: str, lam: float | None) -> bool:
    """Is this the keyword selector at another threshold than the run's, which is to be drawn and not tabled?"""
    found = LAMBDA.match(method)
    return lam is not None and found is not None and float(found[2]) != lam


def main_groups(protocol: str, groups: Sequence[str]) -> list[str]:
    """Those of the main table, in the order given; all where the protocol's usual ones are not among them."""
    usual = protocol_title(protocol).main
    return [group for group in groups if group in usual] or list(groups)


def finals_of(measures: Sequence[Measure], of: Measure) -> list[str]:
    """The methods that count in the split of `of`: refined masks, not coarse ones; the selector, not its baselines.

    measures: of one protocol.
    """
    methods = [each.method for each in measures if (each.dataset, each.split) == (of.dataset, of.split)]
    selectors = [method for method in methods if method.startswith("selector")]
    kept = selectors or [method for method in methods if method != "coarse"]
    return list(dict.fromkeys(kept or methods))


def _section(protocol: str, measures: Sequence[Measure], finals: bool) -> Section:
    title = protocol_title(protocol)
    groups = list(dict.fromkeys(each.group for each in measures))
    main = main_groups(protocol, groups)
    theirs = beside({(each.protocol, each.dataset, each.split) for each in measures})
    notes = list(dict.fromkeys(each.absent for each in measures if each.value is None and each.absent))
    rest = [each for each in measures if each.group not in main]
    if finals:
        rest = [each for each in rest if each.method in finals_of(measures, each)]
    return Section(
        protocol=protocol,
        title=title,
        main=_table([each for each in measures if each.group in main], theirs, notes, grouped=False),
        breakdown=_table(rest, theirs, notes, grouped=True) if rest else None,
        notes=(*notes, *dict.fromkeys(f"{each.method}: {each.note}" for each in theirs if each.note)),
    )


def _table(measures: Sequence[Measure], theirs: Sequence[Published], notes: Sequence[str], *, grouped: bool) -> Table:
    """grouped: rows have a group each; else groups are columns. theirs: shown where we have that group too."""
    places = {(each.dataset, each.split, each.group) for each in measures}
    theirs = [each for each in theirs if (each.dataset, each.split, each.group) in places]
    metrics = list(dict.fromkeys([m.metric for m in measures] + [name for p in theirs for name in p.values]))
    groups = list(dict.fromkeys(each.group for each in measures))
    columns = [("", metric) for metric in metrics] if grouped else [(g, m) for g in groups for m in metrics]
    rows: dict[Key, dict[Column, Measure]] = {}
    for each in measures:
        row, column = (each.group, "") if grouped else ("", each.group)
        rows.setdefault((each.dataset, each.split, each.method, row), {})[column, each.metric] = each
    ours = [_row(key, found, columns, notes) for key, found in rows.items()]
    lines = [*ours, *_their_rows(theirs, columns, grouped)]
    order = list(dict.fromkeys((row.dataset, row.split) for row in ours))
    lines.sort(key=lambda row: order.index((row.dataset, row.split)))  # stable: theirs below ours
    titles = tuple(_column_title(column, groups, metrics) for column in columns)
    return Table(columns=titles, keys=tuple(columns), rows=tuple(lines), grouped=grouped)


def _row(key: Key, found: Mapping[Column, Measure], columns: Sequence[Column], notes: Sequence[str]) -> Row:
    cells = []
    for column in columns:
        measure = found.get(column)
        absent = measure is not None and measure.value is None and measure.absent
        cells.append(Cell(value=measure.value if measure else None, note=notes.index(absent) + 1 if absent else 0))
    dataset, split, method, group = key
    first = next(iter(found.values()))  # GCG counts captions for these, and true phrases for its masks
    return Row(
        dataset=dataset,
        split=split,
        method=method,
        group=group,
        cells=tuple(cells),
        images=first.images,
        items=first.items,
        failed=first.failed,
    )


def _their_rows(theirs: Sequence[Published], columns: Sequence[Column], grouped: bool) -> list[Row]:
    """Published lines; of one method the groups that are columns are one line."""
    rows: dict[Key, tuple[Published, dict[Column, Cell]]] = {}
    for each in theirs:
        row, column = (each.group, "") if grouped else ("", each.group)
        cells = rows.setdefault((each.dataset, each.split, each.method, row), (each, {}))[1]
        for metric, value in each.values.items():
            cells[column, metric] = Cell(value=Estimate(value=value, low=None, high=None))
    return [
        Row(
            dataset=dataset, split=split, method=method, group=group, published=first,
            cells=tuple(cells.get(column, Cell()) for column in columns),
        )
        for (dataset, split, method, group), (first, cells) in rows.items()
    ]  # fmt: skip


def _column_title(column: Column, groups: Sequence[str], metrics: Sequence[str]) -> str:
    """A metric; with the group before it where there are several; the group alone where all are of one metric."""
    group, metric = column
    if not group or len(groups) == 1:
        return metric_title(metric)
    return group if len(metrics) == 1 else f"{group} {metric_title(metric)}"


def percent(value: float | None) -> str:
    """ "62.9" of a value in [0, 1], "–" of none."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(value: Estimate | None) -> str:
    """ "62.9 [61.0, 64.8]", in percent."""
    if value is None or value.low is None:
        return percent(value.value if value else None)
    return f"{percent(value.value)} [{percent(value.low)}, {percent(value.high)}]"


def markdown(evaluation: Evaluation, *, breakdown: bool = True) -> str:
    """The tables as GitHub Markdown, in percent with 95 % intervals over images; `breakdown`: those by group too."""
    parts = []
    for section in sections(evaluation.measures, lam=evaluation.run.get("lam")):
        parts += markdown_section(section, breakdown=breakdown)
    return "\n".join(parts)


def markdown_section(section: Section, *, breakdown: bool = True) -> list[str]:
    """Its title, tables and notes, each with the end of its last line."""
    parts = [f"### {_line(section.title.title)}\n", _markdown_table(section.main, section)]
    if section.breakdown and breakdown:
        parts.append(_markdown_table(section.breakdown, section))
    if section.notes:
        parts.append("\n".join(f"{number}. {_line(note)}" for number, note in enumerate(section.notes, 1)) + "\n")
    return parts


def _markdown_table(table: Table, section: Section) -> str:
    head = ["data", "method", *(["of"] if table.grouped else []), *table.columns, section.title.items, "failed"]
    lines = []
    for row in table.rows:
        method = f"*{row.method}, [published]({row.published.source})*" if row.published else row.method
        counts = ["", ""] if row.published else [str(row.items), str(row.failed)]
        cells = ["" if row.published and not cell.value else _markdown_cell(cell) for cell in row.cells]
        lines.append([f"{row.dataset} {row.split}", method, *([row.group] if table.grouped else []), *cells, *counts])
    left = 3 if table.grouped else 2
    return markdown_table(head, lines, left)


def _markdown_cell(cell: Cell) -> str:
    text = interval(cell.value) + (f" ({cell.note})" if cell.note else "")
    return f"**{text}**" if cell.mark == "best" else f"{text} ≈" if cell.mark == "near" else text


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """The first `left` columns to the left, the others to the right. A cell is one line, whatever is in it."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    escaped = [[_line(cell).replace("|", "\\|") for cell in line] for line in (head, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())
