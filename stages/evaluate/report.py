"""What an evaluation leaves behind: metrics.json (for programs), results.md (for a README), report.html and sheet.png.

    paths = write_report(out_dir, Evaluation(run={"lmm": "tiny", ...}, res=summarise_res(results), ...), cases)

The page is one file: no scripts, fonts or pictures from elsewhere, and a policy in its head that forbids them.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.keywords import KeywordRow
from stages.evaluate.pictures import Case, draw_panels, draw_sheet
from stages.evaluate.png import CURVE, GROUPS, PngRow
from stages.evaluate.res import THRESHOLDS, ResRow
from stages.evaluate.results import by_split

Row = TypeVar("Row", ResRow, PngRow)
SCHEMA: Final = 2
_SHEET_ROWS: Final = 8
_PANEL: Final = 320  # side of a picture in the page, pixels: shown at about half of it, sharp on dense screens
_FAILURES_SHOWN: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All that one evaluation found.

    `run`: what was run, in the order to show it (lmm, head, cache, lam, …), values that JSON can hold; a nested
    mapping (the identity of cache and head) is shown folded; `lmm` and `head` also make the page's title.
    `res`, `png`, `keywords`: the rows of the tables in their order.  `sweep`: the selector at several thresholds.
    `failures`: sample id -> reason.
    """

    run: Mapping[str, Any]
    res: Sequence[ResRow] = ()
    png: Sequence[PngRow] = ()
    keywords: Sequence[KeywordRow] = ()
    sweep: Sequence[KeywordRow] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPaths:
    """The written files; `sheet` is None where there was no case to draw."""

    metrics: Path
    markdown: Path
    page: Path
    sheet: Path | None


def write_report(out_dir: Path, evaluation: Evaluation, cases: Sequence[Case] = ()) -> ReportPaths:
    """Write all files into `out_dir` (made if missing), metrics.json last: where it is, the others are of the same run.

    The page shows all cases, the sheet the first eight. Raises ValueError for a number that JSON does not know (NaN).
    """
    numbers = json.dumps(metrics(evaluation), indent=2, allow_nan=False) + "\n"
    text, html = markdown(evaluation), page(evaluation, cases)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "sheet.png"):  # of an earlier run
        (out_dir / name).unlink(missing_ok=True)
    return ReportPaths(
        sheet=draw_sheet(cases[:_SHEET_ROWS], out_dir / "sheet.png") if cases else None,
        markdown=_write(out_dir / "results.md", text),
        page=_write(out_dir / "report.html", html),
        metrics=_write(out_dir / "metrics.json", numbers),
    )


def is_evaluation(folder: Path) -> bool:
    """Did `write_report` fill this folder, in this version of the program or an earlier one?"""
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"schema", "protocols", "run"} <= record.keys()


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json: all values in [0, 1], every row with its protocol, intervals as low and high."""
    rows: list[ResRow | PngRow | KeywordRow] = [*evaluation.res, *evaluation.png, *evaluation.keywords]
    return {
        "schema": SCHEMA,
        "protocols": sorted({row.protocol for row in rows}),
        "run": dict(evaluation.run),
        "res": [asdict(row) for row in evaluation.res],
        "png": [asdict(row) | {"thresholds": CURVE} for row in evaluation.png],
        "keywords": [asdict(row) for row in evaluation.keywords],
        "keyword_sweep": [asdict(row) for row in evaluation.sweep],
        "failed_samples": len(evaluation.failures),
        "failures": dict(evaluation.failures),
    }


def markdown(evaluation: Evaluation) -> str:
    """The tables as GitHub Markdown, in percent with 95 % intervals."""
    parts = []
    if evaluation.res:
        lines = [
            [f"{r.dataset} {r.split} ({r.protocol})", r.which, _interval(r.ciou), _interval(r.miou)]
            + [_percent(r.precision_at[t]) for t in map(str, THRESHOLDS)]
            + [str(r.objects), str(r.failed)]
            for r in evaluation.res
        ]
        head = ["Referring (protocol)", "mask", "cIoU", "mIoU", *(f"P@{t}" for t in THRESHOLDS), "objects", "failed"]
        parts.append(_table(head, lines))
    if evaluation.png:
        lines = [
            [f"{r.dataset} {r.split}", r.which]
            + [_interval(r.groups[name].average_recall) for name in GROUPS]
            + [str(r.groups["all"].objects), str(r.groups["all"].failed)]
            for r in evaluation.png
        ]
        parts.append(_table(["Narrative (average recall)", "mask", *GROUPS, "objects", "failed"], lines))
    if evaluation.keywords:
        lines = [
            [f"{r.dataset} {r.split}", r.method if r.lam is None else f"{r.method} (λ = {r.lam:g})"]
            + [_percent(value) for value in (r.word.precision, r.word.recall)]
            + [_interval(level.f1) for level in (r.word, r.phrase, r.overlap)]
            for r in evaluation.keywords
        ]
        head = ["Keywords", "method", "word P", "word R", "word F1", "phrase F1", "phrase F1 (overlap > ½)"]
        parts.append(_table(head, lines))
    return "\n".join(parts)


def page(evaluation: Evaluation, cases: Sequence[Case] = ()) -> str:
    """The HTML page. Every text is escaped: expressions and failure reasons come from data."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "bracket": _bracket}
    plain = {name: value for name, value in evaluation.run.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in evaluation.run.items() if isinstance(value, Mapping)}
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        plain=plain,
        nested={name: json.dumps(value, indent=2, ensure_ascii=False, default=str) for name, value in nested.items()},
        groups=GROUPS,
        tiles=_tiles(evaluation),
        recall=_recall_lines(evaluation.png),
        sweep=[(" ".join(name), _sweep_lines(rows)) for name, rows in by_split(evaluation.sweep).items()],
        failures=list(evaluation.failures.items())[:_FAILURES_SHOWN],
        cases=[(case, [(panel, _data_url(panel.picture)) for panel in draw_panels(case, _PANEL)]) for case in cases],
    )


def _final(rows: Sequence[Row]) -> list[Row]:
    """The rows of the head's last masks: refined ones, coarse ones where it has no refiner."""
    return [row for row in rows if row.which == "refined"] or list(rows)


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, Estimate | None]]:
    """The numbers at the top: (name, what of, value), final masks and the selector only."""
    tiles = [(f"{r.dataset} {r.split}", "cIoU", r.ciou) for r in _final(evaluation.res)]
    tiles += [
        (f"{r.dataset} {r.split}", "average recall", r.groups["all"].average_recall) for r in _final(evaluation.png)
    ]
    selector = [r for r in evaluation.keywords if r.method == "selector"]
    return tiles + [(f"{r.dataset} {r.split}", "keyword F1 (words)", r.word.f1) for r in selector]


def _recall_lines(rows: Sequence[PngRow]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each row of final masks: its name and (group, SVG points) of recall over the IoU threshold."""
    return [
        (
            f"{row.dataset} {row.split}",
            [
                (name, _points(CURVE, row.groups[name].recall))
                for name in ("all", "thing", "stuff")
                if row.groups[name].recall
            ],
        )
        for row in _final(rows)
    ]


def _sweep_lines(rows: Sequence[KeywordRow]) -> list[tuple[str, str]]:
    """(name, SVG points) over the selector's threshold; a threshold without the value leaves out its point."""
    series = {
        "word F1": [r.word.f1.value if r.word.f1 else None for r in rows],
        "word precision": [r.word.precision for r in rows],
        "word recall": [r.word.recall for r in rows],
        "phrase F1": [r.phrase.f1.value if r.phrase.f1 else None for r in rows],
    }
    return [(name, _points([r.lam or 0.0 for r in rows], values)) for name, values in series.items()]


def _points(xs: Sequence[float], ys: Sequence[float | None]) -> str:
    """SVG points of values in [0, 1] x [0, 1] in a chart of 400 x 200, y up."""
    return " ".join(f"{400 * x:.1f},{200 - 200 * y:.1f}" for x, y in zip(xs, ys, strict=True) if y is not None)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _bracket(value: Estimate | None) -> str:
    """ "61.0 – 64.8", or nothing where there is no interval."""
    return "" if value is None or value.low is None else f"{_percent(value.low)} – {_percent(value.high)}"


def _interval(value: Estimate | None) -> str:
    """ "62.9 [61.0, 64.8]"."""
    if value is None or value.low is None:
        return _percent(value.value if value else None)
    return f"{_percent(value.value)} [{_percent(value.low)}, {_percent(value.high)}]"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename: a file under its own name is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)
