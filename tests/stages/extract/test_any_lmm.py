"""`extract --lmm FOLDER` with a tiny checkpoint of every family: planned, extracted, and equal to a live pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.families import FAMILIES, save_family
from cache.priors import Priors
from stages.extract.grids import GRIDS
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMInput
from stages.train_head.data import as_box
from tests.helpers import cli


def resized(maps: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation along one axis between the centres of the cells."""
    count = maps.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.floor(at).astype(int)
    part = (at - low).reshape([-1 if a == axis % maps.ndim else 1 for a in range(maps.ndim)])
    return maps.take(low, axis) * (1 - part) + maps.take(np.minimum(low + 1, count - 1), axis) * part


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_priors_of_any_family(name: str, views: int, data_root: Path, small_cache: Path, tmp_path: Path) -> None:
    folder, cache = save_family(name, tmp_path / "lmm"), tmp_path / "cache"
    preset = resolve_lmm(str(folder))
    command: list[Any] = ["extract", "--lmm", folder, "--sam", "tiny", "--images", small_cache / "images"]
    command += ["--data-root", data_root, "--cache", cache, "--local", "--limit", "1", "--splits", "val", "testA"]
    command += ["--batch-size", "3", "--views", views, "--max-answer-tokens", "9"]
    if views == 2 and GRIDS[preset.family].fine is None:
        cli(*command, expect=2)
        return
    cli(*command)
    priors, lmm = Priors.open(cache), FrozenLMM(preset.with_views(views))
    # of random weights some have nothing to say to a question
    assert priors.samples and all("gave no answer" in reason for reason in priors.failures.values())
    assert priors.channels == views * preset.channels
    for index, sample in enumerate(priors.samples):
        item = priors.read(index)
        if item is None:
            continue
        answer = lmm.processor.answer(sample)
        image = open_image(data_root / sample.image_path, (sample.width, sample.height))
        one = LMMInput(
            image=lmm.prepare(image),
            prompt=lmm.processor.prompt(sample.prompt, image.size),
            answer_ids=answer.ids,
            object_tokens=answer.tokens_of(sample.slots),
        )
        live = lmm.run([one]).attention.flatten(1, 2).numpy()
        box = as_box(item.box)
        for number, view in enumerate(one.prompt.views):
            channels = slice(number * preset.channels, (number + 1) * preset.channels)
            maps, live = np.split(live, [view.height * view.width], -1)
            np.testing.assert_allclose(item.attention_mass[:, channels], maps.sum(-1), rtol=1e-3, atol=1e-5)
            expected = maps.reshape(*maps.shape[:-1], view.height, view.width)
            stored = item.attention[:, channels].astype(np.float32)
            if expected.shape[-2:] != stored.shape[-2:]:  # the finest view's longer side fills the stored square
                assert (box.top, box.left, max(box.height, box.width)) == (0, 0, 64)
                assert not stored[..., box.height :, :].any() and not stored[..., box.width :].any()
                expected = resized(resized(expected, -2, box.height), -1, box.width)
            shown = stored[..., : expected.shape[-2], : expected.shape[-1]]
            means = [np.maximum(m.mean((-1, -2), keepdims=True), 1e-30) for m in (shown, expected)]  # 0: out of window
            np.testing.assert_allclose(shown / means[0], expected / means[1], rtol=4e-3, atol=4e-3)
        assert live.shape[-1] == 0
