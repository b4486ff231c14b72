"""The embedded default's caches, for benchmarks that train heads on them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cache.store import Store
from manifests.errors import PipelineError
from pipeline.cli import main as run_pipeline

QUICK = ("--limit", "24")  # samples of each split
# of LMMs that were not taught to come to an end: nothing is trained or compared on their own answers
CUT = ("--max-answer-tokens", "1")


def extracted(cache: Path, *options: str) -> str:
    """The cache at that place, made with these options of `extract` where it is missing; SystemExit if that fails."""
    try:
        if Store.open(cache).complete:
            return str(cache)
    except PipelineError:
        pass
    here = () if find_spec("ray") else ("--local",)
    if code := run_pipeline(["extract", "--cache", str(cache), *options, *here]):
        raise SystemExit(code)
    return str(cache)
