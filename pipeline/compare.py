"""`run_pipeline.py compare`: several evaluations beside each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from manifests.errors import PipelineError
from pipeline.train_head import prepare_out


@dataclass(kw_only=True, slots=True)
class Compare:
    """Put evaluations beside each other: a page, Markdown and JSON with every number and interval, and what differs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """--out folders of two or more runs of `evaluate`, in the order of the rows."""
    out: Path = Path("runs/comparison")
    """Folder for comparison.html, comparison.md and comparison.json."""


def run(args: Compare) -> None:
    """Read, compare, write, print the table."""
    from stages.evaluate.compare import FILE, compare, comparison_markdown, is_comparison, write_comparison
    from stages.evaluate.evaluation import read_metrics

    if len(args.runs) < 2:
        raise PipelineError("compare needs two evaluations at least: compare DIR DIR --out DIR")
    names = _names(args.runs)
    comparison = compare({name: read_metrics(place) for name, place in zip(names, args.runs, strict=True)})
    prepare_out(args.out, "comparison", is_comparison)
    page = write_comparison(args.out, comparison)
    print(comparison_markdown(comparison))
    print(f"compare: {len(names)} evaluations, {len(comparison.warnings)} warnings\n  page {page}")
    print(json.dumps({"runs": names, "warnings": list(comparison.warnings), "file": str(args.out / FILE)}))


def _names(places: tuple[Path, ...]) -> list[str]:
    """The folders' names, as much of their paths as tells them apart. PipelineError: one is given twice."""
    found = [place.resolve() for place in places]
    if len(set(found)) < len(found):
        raise PipelineError("compare: a folder is given twice; name each once")
    for parts in range(1, max(len(place.parts) for place in found) + 1):
        names = ["/".join(place.parts[-parts:]) for place in found]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")
