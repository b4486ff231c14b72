"""LMMs of other families, tiny and of random weights: an answer, words with maps of their own grid, masks, turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.families import save_family
from cache.identity import plain
from stages.extract.presets import resolve_lmm
from stages.extract.sam import SAM_PRESETS
from stages.extract.stage import files_of, lmm_identity, priors_identity, sam_identity
from stages.ground import Grounder
from stages.train_head.heads.base import PriorShape
from stages.train_head.heads.checkpoint import save_head
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead

# one of every kind of grid, and what is special about a text decoder: windows, hybrids, eager attention, prefixes
FAMILIES = (
    "llava", "llava-next-mistral", "qwen2.5-vl", "internvl", "gemma3", "paligemma2", "idefics3", "lfm2-vl", "molmo2",
    "mistral3", "llama4",
)  # fmt: skip


def untrained_head(lmm: str, folder: Path) -> Path:
    """A stored head of random weights for an LMM; whether its selector learned anything it does not say."""
    preset = resolve_lmm(lmm)
    shape = PriorShape(channels=preset.channels, layers=preset.layers, width=preset.width)
    head = GroundingHead(shape, GroundingConfig(input_size=32, base_width=8, sam=SAM_PRESETS["tiny"]))
    images = {"identity": sam_identity("tiny", None), "rows": "of no cache"}
    identity = priors_identity(lmm_identity(preset, preset.dtype, files_of(preset)), "mean", images)
    head.priors = plain(identity)
    save_head(head, folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_any_lmm_is_talked_to(name: str, tmp_path: Path) -> None:
    lmm = str(save_family(name, tmp_path / "lmm"))
    grounder = Grounder.load(lmm, untrained_head(lmm, tmp_path / "head"))
    preset = grounder.lmm.preset
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 112, 3), dtype=np.uint8))
    answer = grounder.answer(image, "what is this ?", max_new_tokens=12)
    found = grounder.ground(answer, lam=0.01)  # random scores are about a half
    words = len(answer.text.split())
    assert len(found.words) == words and found.attention.shape == (words, preset.channels, *preset.grid)
    assert len(found.phrases) == (words > 0)
    assert all(phrase.mask.shape == (70, 112) for phrase in found.phrases)
    given = grounder.segment(image, "the red ring")
    assert given.phrases[0].mask.shape == (70, 112) and np.isfinite(given.attention).all()
    height, width = given.attention_of(0).shape[1:]
    assert width > height or preset.grid[0] == height == width  # an image that is wider than high, padded or stretched
    second = grounder.answer(image, "where ?", after=answer, max_new_tokens=4)
    assert second.turns and grounder.ground(second, lam=0.01).text == second.text
