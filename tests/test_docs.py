"""What docs/lmms.md says of presets and families is what the program has."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.families import FAMILIES
from stages.extract.grids import GRIDS
from stages.extract.presets import PRESETS

LINES = (Path(__file__).parents[1] / "docs" / "lmms.md").read_text(encoding="utf-8").splitlines()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("|")]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_row(name: str) -> None:
    preset = PRESETS[name]
    views = "1 or 2" if GRIDS[preset.family].fine is not None else "1"
    height, width = preset.grid
    expected = [name, preset.source, preset.family, f"{height}×{width}", f"{preset.channels:,}"]
    expected += [f"{preset.object_bytes:,}", views]
    assert [row[:7] for row in ROWS if row[0] == name and len(row) == 8] == [expected]


def test_every_family_has_its_row() -> None:
    named = [row[0] for row in ROWS if row[-1] in ("sdpa", "eager")]
    assert named == list(FAMILIES)
