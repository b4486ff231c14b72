"""The chunker against the generator's own marks of what is a noun, and the lexicon by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from manifests.scenes.language import narrative
from manifests.scenes.world import make_scene
from stages.evaluate.baselines import Lexicon, NounPhrases

CHUNKS = NounPhrases.for_scenes()


def chunks(text: str) -> list[str]:
    words, labels = text.split(), CHUNKS(text.split()).tolist()
    numbers = sorted(set(labels) - {-1})
    return [" ".join(word for word, label in zip(words, labels, strict=True) if label == n) for n in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the small red ring", ["the small red ring"]),
        ("there is no star .", ["star"]),
        ("there are no purple crosses .", ["purple crosses"]),
        ("in the background is the sky .", ["the background", "the sky"]),
        ("two dotted purple triangles", ["two dotted purple triangles"]),
        ("the ring left of the blue star is red .", ["the ring", "the blue star"]),
        ("the star is on the left side .", ["the star", "the left side"]),
        ("the star on the left is checkered .", ["the star", "the left"]),
        ("The ring, the star", ["The ring,", "the star"]),
        ("we see : large striped", []),
        ("the ring that is small and red is on the sky", ["the ring that is small and red", "the sky"]),
        (
            "two rings that are plain , the star on the left , small",
            ["two rings that are plain", "the star", "the left , small"],
        ),
        ("the ring is red , blue", ["the ring"]),
    ],
)
def test_noun_phrases(text: str, expected: list[str]) -> None:
    assert chunks(text) == expected


def test_every_noun_of_the_narratives_is_found_and_no_verb() -> None:
    """The generator marks its noun segments; outside them only places, "this" and articles may be chosen."""
    nouns = 0
    for index in range(60):
        split = ("narratives", "shifted")[index % 2]
        segments = narrative(make_scene(split, index), random.Random(index))
        words = [word for segment in segments for word in segment.text.split()]
        is_noun = [segment.noun for segment in segments for _ in segment.text.split()]
        ends = np.cumsum([len(segment.text.split()) for segment in segments]) - 1
        labels = CHUNKS(words)
        for segment, end in zip(segments, ends, strict=True):
            nouns += segment.noun
            assert not segment.noun or labels[end] >= 0, segment.text  # its last word: noun, place or adjective
        outside = {word for word, noun, label in zip(words, is_noun, labels, strict=True) if label >= 0 and not noun}
        assert outside <= {"the", "a", "this", "some", "left", "right"}
    assert nouns > 300


def test_lexicon_is_the_majority_of_training() -> None:
    texts = [
        (["the", "ring", "is", "red", "."], np.array([0, 0, -1, -1, -1])),
        (["no", "Ring", ",", "the", "star"], np.array([-1, -1, -1, 0, 0])),
        (["the", "ring"], np.array([0, 0])),
        (["red", "side"], np.array([0, -1])),
    ]
    lexicon = Lexicon.fit(texts)
    assert lexicon.grounded == {"the", "ring", "star"}  # "red": as often as not, so no
    assert lexicon(["the", "unseen", "ring.", "red"]).tolist() == [0, -1, 0, -1]
