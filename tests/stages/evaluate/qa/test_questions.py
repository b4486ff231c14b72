"""The built-in questions: held-out scenes, equally many of each kind, and truths that plain loops over a scene find."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from manifests.scenes.language import NUMBERS, PLURALS
from manifests.scenes.world import SPLIT_SEEDS, make_scene, scene_seed
from stages.evaluate.qa.questions import KINDS, scene_questions

FOUND = scene_questions(60)


def test_as_many_of_each_kind_and_always_the_same() -> None:
    assert Counter(each.kind for each in FOUND) == dict.fromkeys(KINDS, 10)
    assert len({each.question_id for each in FOUND}) == 60
    again = scene_questions(60)
    assert [(e.text, e.truth, e.image_id) for e in again] == [(e.text, e.truth, e.image_id) for e in FOUND]
    assert Counter(each.kind for each in scene_questions(7)).most_common(1)[0][1] == 2


def test_no_model_learned_from_the_scenes() -> None:
    learned = [range(SPLIT_SEEDS[split], SPLIT_SEEDS[split] + 10**9) for split in ("pretrain", "train", "val")]
    for each in FOUND:
        split, index = each.image_id.split("/")
        assert not any(scene_seed(split, int(index)) in seeds for seeds in learned)
        assert np.array_equal(np.asarray(each.image), make_scene(split, int(index)).image)


@pytest.mark.parametrize("kind", ["colour", "count", "exists"])
def test_truths_are_the_scenes(kind: str) -> None:
    singular = {plural: shape for shape, plural in PLURALS.items()}
    for each in (e for e in FOUND if e.kind == kind):
        split, index = each.image_id.split("/")
        things = make_scene(split, int(index)).things
        words = each.text.split()
        shape = singular[words[2]] if kind == "count" else words[3 if kind == "exists" else 4]
        same = [thing for thing in things if thing.shape == shape]
        if kind == "colour":
            expected = same[0].colour
            assert len(same) == 1
        elif kind == "count":
            expected = NUMBERS.get(len(same), "one")
        else:
            expected = "yes" if same else "no"
        assert each.is_right(expected)


def test_right_words_and_no_others() -> None:
    each = next(e for e in FOUND if e.kind == "ground")
    assert each.is_right(each.truth.removesuffix(" .").title()) and each.is_right(f" {each.truth} ")
    assert not each.is_right(each.truth + " left") and not each.is_right("")
