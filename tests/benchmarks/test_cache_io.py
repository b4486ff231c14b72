from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cache_io import Config, bytes_per_object, compare_reads, compare_writes, llava_arrays


def test_llava_is_laid_out_as_extraction_plans_it() -> None:
    specs = {spec.name: spec for spec in llava_arrays()}
    assert specs["attention"].item_shape == (1024, 24, 24) and specs["attention"].slots_per_unit == 56
    assert specs["hidden"].item_shape == (32, 4096)
    found = bytes_per_object(list(specs.values()))
    for name, side in (("native", 24), ("grid64", 64)):
        assert 1024 * side**2 * 2 + 20 <= found[name] <= 1024 * side**2 * 2 + 21


def test_everyone_reads_the_same_and_every_ratio_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)  # its threads do not survive the forks of other tests
    config = Config(dir=tmp_path, units=2, reads=3, repeats=2)
    specs = [replace(spec, item_shape=spec.item_shape[:1], slots_per_unit=8, slots_per_chunk=1) for spec in _arrays()]
    reads, writes = compare_reads(config, specs[0]), compare_writes(config, specs)
    assert reads["tensorstore"] is None
    for ratio in (reads["read_over_memmap_crc"], reads["read_over_memmap_nocrc"], writes["write_over_npsave"]):
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and ratio["repeats"] == 2


def _arrays() -> list:
    return [spec for spec in llava_arrays() if spec.item_shape]
