"""What several tests use: running a command in this process, a tree of files as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cli import main

FEW = ["extract", "--dataset", "scenes-refcoco", "--splits", "val", "--local"]


def cli(*args: Any, expect: int = 0) -> None:
    """`run_pipeline.py ARGS` in this process; fails unless it exits with `expect`."""
    code = main([str(arg) for arg in args])
    assert code == expect, f"{args} exited with {code}, expected {expect}"


def tree(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
