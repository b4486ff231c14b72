"""The benchmark of evaluation on a small cache: every protocol, and the same files twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evaluate import Config, main


def test_every_protocol_twice_the_same(small_cache: Path, small_head: Path, tmp_path: Path) -> None:
    result = main(Config(cache=small_cache, head=small_head, out=tmp_path / "out", captions=False))
    assert result["protocols"] == ["gcg", "gcg-strict", "keywords", "png", "reasonseg", "res-flmm"]
    assert result["repeat_equal"] and result["repeats"] == 2
    assert result["objects"] > result["objects_part"] > 0 and result["s_per_1000_objects"] > 0
    assert result["peak_gib_part"] > 0 and result["peak_gib"] < result["peak_gib_part"] + 1
    assert set(result["absent"]) == {f"{p} {m}" for p in ("gcg", "gcg-strict") for m in ("meteor", "cider")}


def test_one_run_repeats_nothing() -> None:
    with pytest.raises(SystemExit, match="2 or more"):
        Config(repeats=1)
