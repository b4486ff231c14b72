"""What a sample refuses, and what the planner is told about unusable ones."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from manifests.errors import DatasetError
from manifests.masks import empty, encode
from manifests.schema import (
    DEFAULT_PROMPT,
    Object,
    Piece,
    Reply,
    Sample,
    leaves_root,
    problem,
)


def sample(**changes: object) -> Sample:
    """A sound sample of two objects."""
    mask = encode(np.eye(4, 6, dtype=bool))
    parts = [
        Object(object_id=f"o{i}", mask=mask, is_thing=True, plural=False, category="x", phrase="p") for i in (0, 1)
    ]
    sound = Sample(
        sample_id="s",
        dataset="refcoco",
        split="val",
        task="referring",
        image_id="1",
        image_path="a/b.jpg",
        height=4,
        width=6,
        pieces=(Piece(text="one", object=0), Piece(text="."), Piece(text="two", object=1)),
        objects=tuple(parts),
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


def test_default_prompt() -> None:
    assert sample().prompt == DEFAULT_PROMPT == "Please give me a description of the image."


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a", "a/../../b", "C:\\a", "c:/a", "\\\\host\\a", "a\\..\\b", "", " ", "a\0"]
)
def test_paths_that_leave_the_root(path: str) -> None:
    assert leaves_root(path)
    with pytest.raises(DatasetError, match=r"sample s: image path .* leaves the data root"):
        sample(image_path=path)


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "a/..b.jpg", "ä ö/c.png", "./a.jpg"])
def test_paths_that_stay(path: str) -> None:
    assert not leaves_root(path) and sample(image_path=path).image_path == path


def test_a_sound_sample_has_no_problem_and_the_readers_error_comes_first() -> None:
    assert problem(sample()) is None
    assert problem(sample(error="line 3: no photo", objects=())) == "line 3: no photo"


def _objects(index: int, **changes: object) -> tuple[Object, ...]:
    objects = list(sample().objects)
    objects[index] = replace(objects[index], **changes)  # type: ignore[arg-type]
    return tuple(objects)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"pieces": (Piece(text="one", object=0), Piece(text=" ", object=1))},
            "object o1 has an empty text: give it words",
        ),
        ({"pieces": (Piece(text="one", object=0),)}, "no text speaks of object o1: give it a piece of the text"),
        (
            {"pieces": (Piece(text="one", object=2),)},
            "sample s: .* belongs to object 2, there are 2.*: correct the index",
        ),
        ({"pieces": (Piece(text="one", object=-1),)}, "sample s: .* belongs to object -1.*: correct the index"),
        ({"pieces": (Piece(text="hello"),), "objects": ()}, "sample s has no object to ground: give a piece .* a mask"),
        ({"objects": _objects(1, mask=empty(4, 6))}, "object o1 has no pixels: correct its annotation"),
        (
            {"objects": _objects(0, mask=empty(6, 4))},
            r"object o0 is 6x4 pixels \(height x width\), its image 4x6: give the mask at the image's size",
        ),
        (
            {"objects": _objects(0, mask={"size": [4, 6], "counts": "o"})},
            r"object o0 can not be decoded \(.*\): correct its annotation",
        ),
    ],
)
def test_problem_names_the_object_and_the_cure(changes: dict[str, object], words: str) -> None:
    found = problem(sample(**changes))
    assert found is not None and re.search(words, found), found


REPLY = Reply(ids=(5, 6, 7), words=(0, 0, 1), text="a ring", finished=True)


def test_a_question_needs_an_answer() -> None:
    asked = replace(sample(), task="reasoning", pieces=(), objects=sample().objects[:1])
    assert "--answer" in str(problem(asked))
    assert problem(replace(asked, reply=REPLY)) is None
    assert "gave no answer" in str(problem(replace(asked, reply=replace(REPLY, ids=(), words=()))))


def test_only_a_question_may_be_about_nothing() -> None:
    nothing = replace(sample().objects[0], mask=empty(4, 6))
    asked = replace(sample(), task="reasoning", pieces=(), objects=(nothing,), reply=REPLY)
    assert problem(asked) is None
    assert "no pixels" in str(problem(replace(sample(), objects=(nothing, nothing))))


def test_a_reply_is_searched_word_by_word() -> None:
    told = replace(sample(), task="conversation")
    assert told.slots == 2
    assert replace(told, reply=REPLY).slots == 2
    assert replace(told, reply=replace(REPLY, words=(0, 1, 2))).slots == 3
    assert replace(sample(), task="reasoning", reply=REPLY).slots == 2
