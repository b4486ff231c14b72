"""`import-head` end to end: a published-format checkpoint, a cache of the same sizes, evaluate takes the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cache.priors import Priors
from stages.extract.sam import SAM_PRESETS
from stages.train_head.heads.checkpoint import load_head
from stages.train_head.heads.published import to_published
from tests.helpers import cli, tree
from tests.stages.train_head.heads.published import published_weights


def checkpoint(file: Path, cache: Path, **sizes: int) -> dict[str, torch.Tensor]:
    """Writes a head for the priors of that cache, with other sizes where they are given."""
    priors = Priors.open(cache)
    own = {"channels": priors.channels, "layers": priors.layers, "width": priors.width, "base": 4}
    weights = published_weights(**{**own, **sizes}, sam=SAM_PRESETS["tiny"])
    torch.save({"state_dict": weights, "meta": {"epoch": 8}}, file)
    return weights


def test_an_imported_head_is_evaluated(small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoint(tmp_path / "flmm.pth", small_cache)
    head, results = tmp_path / "head", tmp_path / "results"
    cli("import-head", "--file", tmp_path / "flmm.pth", "--cache", small_cache, "--out", head)
    said = capsys.readouterr().out
    assert "non-commercial" in said and "keyword selector untrained" in said and "note:" not in said
    assert all(torch.equal(value, weights[name]) for name, value in to_published(load_head(head)).items())
    record = json.loads((head / "training.json").read_text())
    assert record["provenance"]["source"] == "flmm.pth" and record["command"] == "import-head"
    cli("evaluate", "--cache", small_cache, "--head", head, "--out", results, "--splits", "testA")
    assert json.loads((results / "metrics.json").read_text())


def test_other_sizes_are_one_error_and_nothing_is_written(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "flmm.pth", small_cache, channels=1024, width=64)
    cli("import-head", "--file", tmp_path / "flmm.pth", "--cache", small_cache, "--out", tmp_path / "head", expect=2)
    error = capsys.readouterr().err.strip()
    assert "channels 1024 instead of 30, width 64 instead of " in error and "base_width" not in error
    assert len(error.splitlines()) == 1
    assert list(tree(tmp_path)) == ["flmm.pth"]
