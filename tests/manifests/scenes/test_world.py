"""Scenes: a pure function of (split, index), no scene in two splits, held-out looks only where they belong."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from manifests.scenes.world import (
    HELD_OUT_PAIRS,
    HELD_OUT_TEXTURE,
    SPLIT_SEEDS,
    make_scene,
    scene_seed,
)

ROOM = 1_000_000_000


def test_seed_ranges_are_disjoint() -> None:
    ranges = sorted((scene_seed(split, 0), scene_seed(split, ROOM - 1)) for split in SPLIT_SEEDS)
    assert all(last < following[0] for (_, last), following in itertools.pairwise(ranges))
    for index in (-1, ROOM):
        with pytest.raises(ValueError, match="outside"):
            scene_seed("train", index)
    with pytest.raises(KeyError):
        scene_seed("test", 0)


def test_no_picture_occurs_twice_in_or_across_splits() -> None:
    hashes = [hashlib.sha256(make_scene(s, i).image.tobytes()).digest() for s in SPLIT_SEEDS for i in range(40)]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("split", SPLIT_SEEDS)
def test_a_scene_is_a_function_of_split_and_index(split: str) -> None:
    for index in (0, 7, ROOM - 1):
        first, again = make_scene(split, index), make_scene(split, index)
        assert first.things == again.things and first.stuff == again.stuff
        assert np.array_equal(first.image, again.image) and np.array_equal(first.segments, again.segments)


@pytest.mark.parametrize("split", SPLIT_SEEDS)
def test_held_out_looks_are_shown_in_shifted_alone(split: str) -> None:
    things = [thing for index in range(150) for thing in make_scene(split, index).things]
    pairs = {(t.colour, t.shape) for t in things} & HELD_OUT_PAIRS
    textured = [t for t in things if t.texture == HELD_OUT_TEXTURE]
    if split == "shifted":
        assert pairs == HELD_OUT_PAIRS and len(textured) > 50
    else:
        assert not pairs and not textured


@pytest.mark.parametrize("split", SPLIT_SEEDS)
def test_segments_cover_the_image_and_nothing_is_hidden(split: str) -> None:
    for index in range(40):
        scene = make_scene(split, index)
        values = set(np.unique(scene.segments).tolist())
        assert values == set(range(len(scene.stuff) + len(scene.things)))
        masks = [scene.stuff_mask(k) for k in range(len(scene.stuff))]
        masks += [scene.thing_mask(i) for i in range(len(scene.things))]
        assert np.array_equal(np.sum(masks, axis=0), np.ones((scene.height, scene.width)))
        assert min(int(mask.sum()) for mask in masks) >= 12
