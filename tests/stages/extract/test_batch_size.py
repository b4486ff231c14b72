"""`--batch-size auto`: measured once with the longest sample, then part of the plan; a resume keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cache.priors import Priors
from cache.store import Store
from manifests.errors import ModelError
from stages.extract.batch_size import BatchSizeProbe, Longest
from stages.extract.presets import resolve_lmm
from stages.extract.work import WorkerConfig
from tests.helpers import cli, tree


def probe_that(monkeypatch: pytest.MonkeyPatch, trial: Any) -> BatchSizeProbe:
    """The probe of the embedded LMM, whose trials of a size are `trial(size)`: (samples per second, peak GiB)."""
    config = WorkerConfig(
        cache=Path(), images=Path(), data_root=Path(), lmm=resolve_lmm("tiny"), dtype="float32", merge="mean",
        sam="tiny", sam_checkpoint=None, device="cpu", gpus=0, threads=1,
    )  # fmt: skip
    probe = BatchSizeProbe(config)

    def fake(_sample: Any, size: int) -> dict[str, float]:
        speed, peak = trial(size)
        return {"size": size, "samples_per_s": speed, "peak_gib": peak}

    monkeypatch.setattr(probe, "_trial", fake)
    return probe


def test_the_smallest_size_is_taken_that_a_larger_one_does_not_beat(
    monkeypatch: pytest.MonkeyPatch, small_cache: Path
) -> None:
    sample = Longest(sample=Priors.open(small_cache).samples[0])
    speeds = {1: 10.0, 2: 18.0, 4: 30.0, 8: 31.0}
    assert probe_that(monkeypatch, lambda size: (speeds[size], 1.0)).run(sample)["batch_size"] == 4
    ever_faster = probe_that(monkeypatch, lambda size: (float(size), 1.0)).run(sample)
    assert (ever_faster["batch_size"], len(ever_faster["trials"])) == (64, 7)

    def up_to_four(size: int) -> tuple[float, float]:
        if size > 4:
            raise torch.OutOfMemoryError
        return float(size), 1.0

    assert probe_that(monkeypatch, up_to_four).run(sample)["batch_size"] == 4
    # 1 GiB, then 10^4 GiB: the next one would take 2 x 10^4 more, which no machine has
    greedy = probe_that(monkeypatch, lambda size: (float(size), 1.0 if size == 1 else 1e4)).run(sample)
    assert [trial["size"] for trial in greedy["trials"]] == [1, 2]

    def never(size: int) -> tuple[float, float]:
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="one sample does not fit"):
        probe_that(monkeypatch, never).run(sample)


def test_auto_is_measured_planned_and_kept_for_a_resume(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    few = ["extract", "--data-root", data_root, "--cache", cache, "--local", "--limit", "2", "--splits", "val"]
    cli(*few, "--batch-size", "auto", "--dry-run")
    assert "not measured in a dry run" in capsys.readouterr().out
    cli(*few, "--batch-size", "auto")
    shown = capsys.readouterr().out
    assert "measuring the batch size" in shown and "samples/s" in shown
    size = Store.open(cache).meta.soft["batch_size"]
    assert size >= 1 and f"at most {size} in a forward pass" in shown
    before = tree(cache)
    monkeypatch.setattr(BatchSizeProbe, "run", lambda *_: pytest.fail("a resume measures nothing"))
    cli(*few, "--batch-size", "auto")
    cli(*few, "--batch-size", size)
    assert tree(cache) == before


def test_auto_through_ray(tmp_path: Path, data_root: Path) -> None:
    cache = tmp_path / "cache"
    cli(
        "extract", "--data-root", data_root, "--cache", cache, "--limit", "1", "--splits", "val", "--batch-size", "auto"
    )
    assert Store.open(cache).meta.soft["batch_size"] >= 1
