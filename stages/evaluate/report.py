"""What an evaluation leaves behind: metrics.json (for programs), results.md (for a README), report.html and sheet.png.

paths = write_report(out_dir, Evaluation(run={"lmm": "tiny", ...}, measures=summarise_res(results), ...), cases)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.evaluate.conversations import ConversationCase
from stages.evaluate.evaluation import METRICS_FILE, Evaluation, metrics
from stages.evaluate.page import page
from stages.evaluate.pictures import Case, draw_sheet
from stages.evaluate.tables import markdown

_SHEET_ROWS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPaths:
    """The written files; `sheet` is None where there was no case to draw."""

    metrics: Path
    markdown: Path
    page: Path
    sheet: Path | None


def write_report(
    out_dir: Path,
    evaluation: Evaluation,
    cases: Sequence[Case] = (),
    conversations: Sequence[ConversationCase] = (),
) -> ReportPaths:
    """Write all files into `out_dir` (made if missing), metrics.json last: where it is, the others are of the same run.

    The page shows all cases, the sheet the first eight. Raises ValueError for a number that JSON does not know (NaN).
    """
    numbers = json.dumps(metrics(evaluation), indent=2, allow_nan=False) + "\n"
    text, html = markdown(evaluation), page(evaluation, cases, conversations)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in (METRICS_FILE, "sheet.png"):  # of an earlier run
        (out_dir / name).unlink(missing_ok=True)
    return ReportPaths(
        sheet=draw_sheet(cases[:_SHEET_ROWS], out_dir / "sheet.png") if cases else None,
        markdown=write_whole(out_dir / "results.md", text),
        page=write_whole(out_dir / "report.html", html),
        metrics=write_whole(out_dir / METRICS_FILE, numbers),
    )


def write_whole(path: Path, text: str) -> Path:
    """Write under a temporary name, then rename: a file under its own name is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate, in an error's text
    return temporary.replace(path)
