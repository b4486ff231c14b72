"""Names and folders that `--lmm` does not know, or that hold nothing, say so in one line with the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import ModelError
from stages.extract import presets


def test_missing_embedded_weights_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "TINY", tmp_path)
    with pytest.raises(ModelError, match=r"weights are not in .*python -m stages\.extract\.tiny\.train_lmm --out"):
        presets.resolve_lmm("tiny")


def test_a_folder_without_a_checkpoint_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint: config\.json is missing"):
        presets.resolve_lmm(str(tmp_path))
    with pytest.raises(ModelError, match="known are tiny, llava"):
        presets.resolve_lmm("no-such-lmm")


def test_the_llava_preset_has_the_shapes_of_the_paper() -> None:
    llava = presets.resolve_lmm("llava")
    assert (llava.grid, llava.channels, llava.width, llava.sam) == ((24, 24), 1024, 4096, "vit_l")
