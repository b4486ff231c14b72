"""Cached priors against live ones, of every kind of sample that `extract` knows."""

from __future__ import annotations

from benchmarks.parity import cached_against_live
from manifests.scenes.write import ScenesConfig
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm


def test_what_is_cached_is_what_a_live_pass_gives_replies_included() -> None:
    scenes = ScenesConfig(
        train=1, val=1, test_a=1, test_b=1, narratives=2, shifted=1, reasonseg_val=1, reasonseg_test=1, gcg_val=2
    )
    found = cached_against_live(FrozenLMM(resolve_lmm("tiny"), "cpu", "float32"), scenes)
    assert found["equal"] and found["failed"] == 0 and 0 < found["attention"] < 1e-3
