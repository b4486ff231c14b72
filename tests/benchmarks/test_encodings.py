"""The benchmark of the encodings, without its training: what it derives, and the numbers that it can work out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cache_io import bytes_per_object, llava_arrays
from benchmarks.encoded_bytes import encodings, real_maps
from benchmarks.encodings import Config, derived, show
from cache.priors import Priors
from cache.store import Store


def test_bytes_are_llavas_and_errors_those_of_real_maps(small_cache: Path, tmp_path: Path) -> None:
    assert real_maps(small_cache, tmp_path).name == str(small_cache) and not list(tmp_path.iterdir())
    specs = llava_arrays()
    found, plain = encodings(Store.open(small_cache), specs), bytes_per_object(specs)
    assert found.keys() == {"native", "grid64", "lz4", "log8", "pruned64"}
    for name in ("native", "grid64"):
        assert found[name]["bytes_per_object"] == plain[name]
    assert 64 * 24 * 24 * 2 + 20 <= found["pruned64"]["bytes_per_object"] <= 64 * 24 * 24 * 2 + 21
    cells = 1024 * 24 * 24
    assert cells + 4096 + 40 <= found["log8"]["bytes_per_object"] <= cells + 4096 + 41
    assert 0.5 < found["lz4"]["bytes_per_object"] / plain["native"] < 1
    assert found["lz4"]["bit_equal"] and found["lz4"]["l1_error_max"] == 0
    assert 0.005 < found["log8"]["l1_error_mean"] < found["log8"]["l1_error_max"] < 0.023
    assert 0 < found["grid64"]["l1_error_mean"] < 5e-4


def test_every_cache_is_derived_and_shown_beside_the_raw_one(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, config = Store.open(small_cache), Config(out=tmp_path, seeds=2, quick=True)
    caches = derived(config, source)
    assert list(caches) == ["raw", "lz4", "log8", "pruned"]
    assert [Priors.open(each).channels for each in caches.values()] == [30, 30, 30, 15]
    assert derived(config, source) == caches  # again: nothing is left to do
    scores = {"raw": (0.5, 0.6), "lz4": (0.5, 0.6), "log8": (0.52, 0.58), "pruned": (0.4, 0.6)}
    show(config, source, caches, {(name, seed): both[seed] for name, both in scores.items() for seed in range(2)})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["quality_claim"] is False
    rows = result["encodings"]
    assert rows["lz4"]["change"] == {"mean": 0, "spread": 0, "seeds": [0, 0]}
    assert rows["log8"]["change"]["mean"] == pytest.approx(0) and rows["log8"]["change"]["spread"] == pytest.approx(
        0.04
    )
    assert rows["pruned"]["change"]["mean"] == pytest.approx(-0.05)
    sizes = [rows[name]["bytes_per_object"] for name in caches]
    assert sizes[0] == max(sizes) and all(size < sizes[0] for size in sizes[1:])
