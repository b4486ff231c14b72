"""Spans, boxes and run lengths of a grounding, against pycocotools and plain numpy; texts that must not be printed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from manifests.masks import encode
from stages.ground.results import cut_at, printable, split_words, trimmed
from tests.stages.ground.made_up import grounding_of, mask_of, phrase_of

TEXT = "A ring (red), and the dog ."


def test_record_is_json_and_says_where_everything_is() -> None:
    mask, none = mask_of(), np.zeros((90, 120), bool)
    phrases = [replace(phrase_of(TEXT, "ring (red", mask), coarse_rle=encode(none)), phrase_of(TEXT, "the dog", none)]
    grounding = grounding_of(TEXT, phrases)
    record = json.loads(json.dumps(grounding.record(), allow_nan=False))
    ring, dog = record["phrases"]
    assert [record["text"][p["start"] : p["end"]] for p in (ring, dog)] == ["ring (red", "the dog"]
    assert [record["text"][w["start"] : w["end"]] for w in record["words"]] == TEXT.split()
    assert ring["words"] == [1, 2] and dog["words"] == [4, 5]
    rows, columns = np.nonzero(mask)
    assert ring["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert ring["area"] == mask.sum() == coco.area(ring["mask"])
    assert (coco.decode(ring["mask"]) == mask).all()
    assert dog["bbox"] is None and dog["area"] == 0 and dog["coarse_mask"] is None
    assert (record["height"], record["width"]) == (90, 120)
    assert grounding.numbers == (-1, 0, 0, -1, 1, 1, -1)
    assert grounding.runs == [("A ", -1), ("ring (red", 0), ("), and ", -1), ("the dog", 1), (" .", -1)]


def test_unrefined_has_the_mask_decoders_masks() -> None:
    small = mask_of(rows=slice(0, 2))
    refined = replace(phrase_of(TEXT, "ring", mask_of()), coarse_rle=encode(small))
    only = phrase_of(TEXT, "the dog", mask_of())
    found = grounding_of(TEXT, [refined, only]).unrefined()
    assert (found.phrases[0].mask == small).all() and found.phrases[0].coarse_rle is None
    assert (found.phrases[1].mask == mask_of()).all()


@given(st.text(), st.data())
def test_a_text_cut_at_spans_is_the_text(text: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    pieces = cut_at(text, spans)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, number in pieces if number >= 0] == [text[a:b] for a, b in spans if a < b]
    assert [text[word.start : word.end] for word in split_words(text)] == [word.text for word in split_words(text)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x07", "a\\x1b[31mred\\x07"),
        ("\x9b2J \x7f", "\\x9b2J \\x7f"),
        ("one\r\ntwo\tthree", "one\\r\ntwo three"),
        ("x\u202eexe.gpj", "x\\u202eexe.gpj"),
        ("half \ud800", "half \\ud800"),
        ("été 猫 👩\u200d🚀", "été 猫 👩\u200d🚀"),
    ],
)
def test_what_commands_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_printable_commands(text: str) -> None:
    found = printable(text)
    assert not [c for c in found if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    found.encode()  # no half characters


def test_trimmed_words_keep_their_place() -> None:
    assert trimmed('the "dog".', 4, 10) == (5, 8)
    assert trimmed("...", 0, 3) == (0, 3)
