"""Where phrases stand in a caption, and the caption cut into pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.spans import divide, find_labels

CAPTION = "A man and a woman sit on a bench, the bench is near a tree. A man smiles."


def at(words: str, occurrence: int = 0, caption: str = CAPTION) -> tuple[int, int]:
    start = -1
    for _ in range(occurrence + 1):
        start = caption.index(words, start + 1)
    return start, start + len(words)


@pytest.mark.parametrize(
    "labels, places",
    [
        (["A man", "a woman", "a tree"], [at("A man"), at("a woman"), at("a tree")]),
        (["a man", "A MAN"], [at("A man"), at("A man", 1)]),  # the second is looked for after the first
        (["bench", "the bench"], [at("bench"), at("the bench")]),
        (["a tree", "a woman"], [at("a tree"), at("a woman")]),  # not in the order of the caption
        (["the bench", "bench"], [at("the bench"), at("bench")]),  # the longest first, the other where it is free
        (["a woman", "a woman", "a tree"], [at("a woman"), at("a woman"), at("a tree")]),  # shared: no second place
        (["man", "an", "wom"], [at("man"), None, None]),  # whole words only
        (["", " ", "a dog"], [None, None, None]),
        (["a tree", ""], [at("a tree"), None]),
        (["bench,"], [at("bench,")]),
        (["(x"], [None]),  # no regular expression
    ],
)
def test_find_labels(labels: list[str], places: list[tuple[int, int] | None]) -> None:
    assert find_labels(CAPTION, labels) == places


def test_many_labels_at_many_places_take_no_time() -> None:
    start = time.perf_counter()
    found = find_labels("a " * 5000, [*["a"] * 998, "nowhere"])  # worth minutes once
    assert found == [*((2 * k, 2 * k + 1) for k in range(998)), None]
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "caption, spans, pieces",
    [
        ("a dog on grass.", [(0, 5), (9, 14)], [("a dog", (0,)), ("on", ()), ("grass", (1,)), (".", ())]),
        ("a dog on grass", [(9, 14), (0, 5)], [("a dog", (1,)), ("on", ()), ("grass", (0,))]),
        ("two dogs run", [(0, 8), (0, 8)], [("two dogs", (0, 1)), ("run", ())]),
        ("two dogs run", [(4, 7)], [("two", ()), ("dogs", (0,)), ("run", ())]),  # widened to the word
        ("two dogs run", [(3, 9)], [("two", ()), ("dogs", (0,)), ("run", ())]),  # without the spaces
        ("a man in a hat", [(0, 14), (9, 14)], [("a man in", (0,)), ("a hat", (1,))]),  # cut where the later begins
        ("a red car", [(0, 5), (0, 9)], [("a red", (0,)), ("car", (1,))]),
        ("a b", [(0, 3), (0, 1), (2, 3)], [("a", (1,)), ("b", (2,))]),  # of the first nothing is left
        ("abc", [(5, 9), (-3, -1), (2, 1)], [("abc", ())]),
        ("", [(0, 1)], []),
        ("  a dog  ", [], [("a dog", ())]),
    ],
)
def test_divide(caption: str, spans: list[tuple[int, int]], pieces: list[tuple[str, tuple[int, ...]]]) -> None:
    assert divide(caption, spans) == pieces


SPANS = st.lists(st.tuples(st.integers(-2, 30), st.integers(-2, 30)), max_size=6)


@settings(max_examples=300)
@given(st.text("ab ,\nß", max_size=28), SPANS)
def test_every_letter_stays_and_no_span_is_said_twice(caption: str, spans: list[tuple[int, int]]) -> None:
    pieces = divide(caption, spans)
    assert "".join("".join(text.split()) for text, _ in pieces) == "".join(caption.split())
    assert all(text and text == text.strip() for text, _ in pieces)
    named = [number for _, numbers in pieces for number in numbers]
    assert len(set(named)) == len(named)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8), st.lists(st.sampled_from("abcd"), max_size=4))
def test_labels_found_in_order_are_the_first_that_can_be(words: list[str], labels: list[str]) -> None:
    caption = " ".join(words)
    wanted, place = [], 0
    for label in labels:  # by words, not by characters
        place = next((k + 1 for k in range(place, len(words)) if words[k] == label), -1)
        if place < 0:
            break
        wanted.append((2 * place - 2, 2 * place - 1))
    found = find_labels(caption, labels)
    assert (
        found == wanted
        if place >= 0
        else all(s is None or caption[slice(*s)] == x for s, x in zip(found, labels, strict=True))
    )
