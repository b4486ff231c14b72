"""The benchmark of live grounding: which words name something, its tallies on hand-made cases, and a small run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ground import MASKS, Tally, grounded, naming
from cache.priors import Priors
from manifests.masks import encode
from manifests.schema import Object
from stages.ground.results import PARTS


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("the star on the left , small and red leans at the top .", "the star on the left , small and red"),
        ("the ring that is large and red stands at the bottom right .", "the ring that is large and red"),
        ("the small circle that is dotted is white .", "the small circle that is dotted"),
        ("there are three white stars that are small .", "three white stars that are small"),
        ("the water is below the grass . in the background is the sky .", "the water the grass the sky"),
        ("this is a picture with some things . we see the sky .", "the sky"),
        ("we do not see the water . there is no star .", ""),
        ("a small red star , a large blue ring .", "a small red star a large blue ring"),
        ("yes .", ""),
        ("", ""),
    ],
)
def test_words_that_name_something(text: str, named: str) -> None:
    words = text.split()
    assert " ".join(word for word, is_named in zip(words, naming(words), strict=True) if is_named) == named


def test_scores_of_a_case_made_by_hand(small_cache: Path) -> None:
    """Two true phrases; three chosen ones, of which one is alike in words and two touch the truth."""
    left, right, both = (np.zeros((4, 4), bool) for _ in range(3))
    left[:, :2], right[:, 2:], both[:, 1:3] = True, True, True
    item = Object(object_id="", mask=encode(left), is_thing=True, plural=False, category="", phrase="the red ring")
    sample = replace(
        Priors.open(small_cache, need_images=False).samples[0],
        objects=(item, replace(item, mask=encode(right), phrase="the sky")),
    )
    tally = Tally()
    tally.add(
        ["red ring", "top", "left"], np.stack([left, both, np.zeros((4, 4), bool)]), sample, np.stack([left, right])
    )
    tally.add_words(["the", "red", "ring", "leans", "at", "the", "top", "."], np.array([0, 0, 0, -1, -1, 1, 1, -1]))
    scores = tally.scores()
    assert scores["phrase_f1"] == pytest.approx(2 * 1 / (3 + 2))
    assert scores["matched_miou"] == pytest.approx((1 + 1 / 3) / 2) and scores["mask_recall"] == 0.5
    assert scores["keyword_precision"] == pytest.approx(3 / 5) and scores["keyword_recall"] == 1


def test_a_small_run_agrees_with_the_cache(small_cache: Path) -> None:
    found = grounded("tiny", Priors.open(small_cache), 0.3)
    assert found["scenes"] == 4 and found["true_phrases"] > 8 and found["phrases"] > 8
    assert found["same"]["answers"] == found["same"]["phrases"] == 1
    assert found["same"]["largest_share_of_pixels"] <= 1e-3
    assert set(found["seconds"]) == set(PARTS) and all(value > 0 for value in found["seconds"].values())
    assert found["scores"]["keyword_f1"] > 0.7  # a trained selector
    assert found["scores"]["matched_miou"] > found["controls"]["masks_of_another_scene"]["matched_miou"]
    assert set(found["controls"]["masks_of_another_scene"]) == set(MASKS)
    json.dumps(found)
