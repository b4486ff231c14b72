"""Expressions denote their target alone, grounded phrases what they are grounded to, denied nouns nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.scenes.language import expressions, narrative
from manifests.scenes.world import make_scene
from tests.manifests.scenes.meaning import COLOURS, GROUNDS, NUMBERS, SHAPES, adjectives, denoted, look_alikes, singular

SPLITS = ("pretrain", "train", "val", "testA", "testB", "narratives", "shifted")
INDICES = st.tuples(st.sampled_from(SPLITS), st.integers(0, 999_999_999), st.integers(0, 2**32))


@settings(max_examples=150, deadline=None)
@given(INDICES)
def test_an_expression_denotes_exactly_its_target(place: tuple[str, int, int]) -> None:
    split, index, seed = place
    scene = make_scene(split, index)
    for target in range(len(scene.things)):
        for text in expressions(scene, target, random.Random(seed), count=3):
            assert denoted(scene, text) == {target}, (split, index, text)
            assert text == " ".join(text.lower().split())


def test_most_things_can_be_referred_to_and_every_kind_of_expression_occurs() -> None:
    texts, named, things = [], 0, 0
    for index in range(150):
        scene = make_scene("train", index)
        found = [expressions(scene, i, random.Random(index)) for i in range(len(scene.things))]
        assert all(len(set(own)) == len(own) <= 3 for own in found)
        texts += [text for own in found for text in own]
        named, things = named + sum(map(bool, found)), things + len(found)
    assert named > 0.9 * things
    for words in (" left of the ", " below the ", " on the left", " at the top", *(f" on the {g}" for g in GROUNDS)):
        assert sum(words in text for text in texts) >= 3, words


@settings(max_examples=150, deadline=None)
@given(INDICES)
def test_narratives_ground_what_they_say(place: tuple[str, int, int]) -> None:
    split, index, seed = place
    scene = make_scene(split, index)
    told = narrative(scene, random.Random(seed))
    for before, segment in zip([None, *told], told, strict=False):
        words = segment.text.split()
        where = (split, index, segment.text)
        if segment.stuff:
            assert words == ["the", scene.stuff[segment.stuff[0]]] and len(segment.stuff) == 1, where
            assert not segment.things and segment.noun
        elif segment.plural:
            looks, _, common = segment.text.partition(" that are ")
            group = look_alikes(scene, [singular(w) for w in looks.split()[1:]])
            assert group == set(segment.things), where
            assert not common or group <= look_alikes(scene, adjectives(common)), where
            assert NUMBERS[words[0]] == len(segment.things) and segment.noun, where
        elif segment.things:
            assert denoted(scene, segment.text) == set(segment.things) and segment.noun, where
        elif before and before.text in ("there is no", "there are no"):
            assert segment.noun and look_alikes(scene, [singular(w) for w in words]) == set(), where
        elif before and before.text == "we do not see":
            assert segment.noun and words[1] in GROUNDS - set(scene.stuff), where
        elif segment.noun:
            assert segment.text in ("picture", "things", "background", "side"), where
        else:  # no shape and no stuff is spoken of without being grounded or denied
            assert not {singular(w) for w in words} & (SHAPES | GROUNDS), where


@pytest.mark.parametrize("opening", ["there is no", "there are no", "we do not see"])
def test_the_same_nouns_are_grounded_in_some_scenes_and_denied_in_others(opening: str) -> None:
    denied, grounded = set(), set()
    for index in range(150):
        told = narrative(make_scene("narratives", index), random.Random(index))
        nouns = [(singular(s.text.split()[-1]), bool(s.things or s.stuff)) for s in told if s.noun]
        grounded |= {noun for noun, on in nouns if on}
        texts = [s.text for s in told]
        denied |= {singular(texts[i + 1].split()[-1]) for i, text in enumerate(texts[:-1]) if text == opening}
    assert len(denied & grounded) >= 3
    assert not denied & COLOURS
