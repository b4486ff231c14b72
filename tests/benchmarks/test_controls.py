"""The controls take away exactly what they say, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaConfig

from benchmarks import best_map
from benchmarks.controls import Changed
from benchmarks.random_weights import random_llava
from cache.priors import Priors
from pipeline.comparison import held_out_indices, numbers
from stages.extract.presets import TINY


@pytest.fixture(scope="module")
def priors(small_cache: Path) -> Priors:
    return Priors.open(small_cache)


def test_nothing_changes_nothing(priors: Priors) -> None:
    assert Changed(priors, "nothing").read(0) is priors.read(0)


def test_zero_attention_keeps_the_hidden_states(priors: Priors) -> None:
    changed, item = Changed(priors, "zero").read(0), priors.read(0)
    assert changed is not None and item is not None
    assert not changed.attention.any() and item.attention.any()
    assert changed.scaled_hidden is item.scaled_hidden


def test_swapped_attention_is_that_of_an_object_with_another_mask(priors: Priors) -> None:
    swapped = 0
    for index, sample in enumerate(priors.samples):
        changed, item = Changed(priors, "swap").read(index), priors.read(index)
        assert changed is not None and item is not None
        if priors.samples.searched()[index]:
            assert changed is item
            continue
        masks = [o.mask["counts"] for o in sample.objects]
        for k, maps in enumerate(changed.attention):
            sources = [j for j, other in enumerate(item.attention) if np.array_equal(maps, other)]
            if maps.any():
                assert sources and all(masks[j] != masks[k] for j in sources)
                swapped += 1
            else:
                assert set(masks) == {masks[k]}
    assert swapped > len(priors.samples)


def test_random_hidden_states_keep_their_size_and_are_the_same_every_time(priors: Priors) -> None:
    first, again, item = Changed(priors, "hidden").read(3), Changed(priors, "hidden").read(3), priors.read(3)
    assert first is not None and again is not None and item is not None
    assert np.array_equal(first.hidden, again.hidden) and not np.allclose(first.hidden, item.hidden)
    rms = [np.sqrt(np.square(x.hidden).mean()) for x in (first, item)]
    assert rms[0] == pytest.approx(rms[1], rel=0.1)
    assert first.attention is item.attention


def test_best_map_chooses_on_training_and_validation(priors: Priors) -> None:
    chosen = best_map.choose(priors)
    assert set(chosen) == {"referring", "narrative"}
    assert all(0 <= channel < priors.channels for channel, _ in chosen.values())
    results = best_map.apply(priors, held_out_indices(priors.samples), chosen)
    assert 0 < numbers(results)["res_ciou"] < 1


def test_random_weights_are_the_same_every_time_and_none_is_the_embedded_one(tmp_path: Path) -> None:
    parents = [tmp_path / "a", tmp_path / "b"]
    for parent in parents:
        parent.mkdir()
    folders = [random_llava(parent) for parent in parents]
    made, again = (load_file(f / "model.safetensors") for f in folders)
    trained = load_file(TINY / "lmm" / "model.safetensors")
    assert folders[0].name == folders[1].name and made.keys() == again.keys() == trained.keys()
    for name, tensor in made.items():
        assert torch.equal(tensor, again[name])
        assert tensor.shape == trained[name].shape and (tensor.std() == 0 or not torch.equal(tensor, trained[name]))
    other = LlavaConfig.from_pretrained(TINY / "lmm", image_seq_length=1)
    assert random_llava(parents[0], other).name != folders[0].name
