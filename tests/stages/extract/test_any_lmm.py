"""`extract --lmm FOLDER` with a tiny checkpoint of every family: planned, extracted, and equal to a live pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.families import FAMILIES, save_family
from cache.priors import Priors
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM, LMMInput
from stages.extract.presets import resolve_lmm
from stages.train_head.data import as_box
from tests.helpers import cli


def resized(maps: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation along one axis between the centres of the cells."""
    count = maps.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.floor(at).astype(int)
    part = (at - low).reshape([-1 if a == axis % maps.ndim else 1 for a in range(maps.ndim)])
    return maps.take(low, axis) * (1 - part) + maps.take(np.minimum(low + 1, count - 1), axis) * part


@pytest.mark.parametrize("name", FAMILIES)
def test_priors_of_any_family(name: str, data_root: Path, small_cache: Path, tmp_path: Path) -> None:
    folder, cache = save_family(name, tmp_path / "lmm"), tmp_path / "cache"
    cli("extract", "--lmm", folder, "--sam", "tiny", "--images", small_cache / "images", "--data-root", data_root,
        "--cache", cache, "--local", "--limit", "1", "--splits", "val", "testA", "--batch-size", "3")  # fmt: skip
    priors, lmm = Priors.open(cache), FrozenLMM(resolve_lmm(str(folder)))
    assert priors.samples and not priors.failures
    for index, sample in enumerate(priors.samples):
        item = priors.read(index)
        assert item is not None
        answer = lmm.processor.answer(sample)
        image = open_image(data_root / sample.image_path, (sample.width, sample.height))
        one = LMMInput(
            image=lmm.prepare(image),
            prompt=lmm.processor.prompt(sample.prompt, image.size),
            answer_ids=answer.ids,
            object_tokens=answer.tokens_of(len(sample.objects)),
        )
        live = lmm.run([one]).attention.flatten(1, 2)
        view, box = one.prompt.view, as_box(item.box)
        np.testing.assert_allclose(item.attention_mass, live.sum(-1), rtol=1e-3, atol=1e-5)
        if (view.height, view.width) == item.attention.shape[-2:]:
            expected = live.unflatten(-1, (view.height, view.width))
        else:  # the longer side fills the stored square, and nothing lies beside the image
            assert (box.top, box.left, max(box.height, box.width)) == (0, 0, 64)
            assert not item.attention[..., box.height :, :].any() and not item.attention[..., box.width :].any()
            maps = live.unflatten(-1, (view.height, view.width)).numpy()
            expected = torch.from_numpy(resized(resized(maps, -2, box.height), -1, box.width))
        shown = item.attention[..., : expected.shape[-2], : expected.shape[-1]].astype(np.float32)
        scale = expected.mean((-1, -2), keepdim=True)
        ratio = shown / shown.mean((-1, -2), keepdims=True)
        np.testing.assert_allclose(ratio, expected / scale, rtol=4e-3, atol=4e-3)
