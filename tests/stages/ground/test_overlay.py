"""The picture of a grounding, as pixels: masks where they are, in the colours of the legend; hard cases."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.evaluate.conversations import COLOURS
from stages.ground.badges import BADGE, depth, places
from stages.ground.overlay import colour_of, draw_overlay
from tests.stages.ground.made_up import grounding_of, mask_of, phrase_of

MARGIN = 32
SIDE = 480
TEXT = "A ring and the dog ."


def has(picture: Image.Image, number: int) -> np.ndarray:
    """bool [height, width]: exactly the colour of a phrase."""
    return (np.asarray(picture) == colour_of(number)).all(-1)


def test_masks_are_where_they_are_and_the_legend_has_their_colours() -> None:
    ring, dog = mask_of(), mask_of(rows=slice(50, 85), columns=slice(70, 110))
    drawn = draw_overlay(grounding_of(TEXT, [phrase_of(TEXT, "ring", ring), phrase_of(TEXT, "the dog", dog)]), SIDE)
    picture = drawn.crop((MARGIN, MARGIN, MARGIN + SIDE, MARGIN + 360))
    legend = drawn.crop((0, MARGIN + 360, *drawn.size))
    for number, mask in enumerate((ring, dog)):
        expected = np.kron(mask, np.ones((4, 4), bool))
        pixels = np.asarray(picture, float)
        chroma, wanted = pixels - pixels.mean(-1, keepdims=True), np.array(COLOURS[number], float)
        wanted -= wanted.mean()
        cosine = chroma @ wanted / (np.linalg.norm(chroma, axis=-1) * np.linalg.norm(wanted) + 1e-9)
        shown = (cosine > 0.97) & (np.linalg.norm(chroma, axis=-1) > 30)
        assert (shown & expected).sum() / (shown | expected).sum() > 0.85
        assert has(legend, number).sum() > 200
    assert not has(drawn, 2).any()


def test_a_phrase_without_a_mask_has_no_place_in_the_picture() -> None:
    empty = phrase_of(TEXT, "ring", np.zeros((90, 120), bool))
    drawn = draw_overlay(grounding_of(TEXT, [empty]), SIDE)
    assert not has(drawn.crop((MARGIN, MARGIN, MARGIN + SIDE, MARGIN + 360)), 0).any()
    assert has(drawn.crop((0, MARGIN + 360, *drawn.size)), 0).any()
    # it says so: more ink in its row than with a mask
    full = draw_overlay(grounding_of(TEXT, [phrase_of(TEXT, "ring", mask_of())]), SIDE)
    assert drawn.size == full.size
    rows = slice(-MARGIN - 36, -MARGIN)
    assert (np.asarray(drawn)[rows, 350:] < 200).sum() > 1.5 * (np.asarray(full)[rows, 350:] < 200).sum()


@pytest.mark.parametrize(
    ("size", "picture"),
    [
        ((16, 16), (480, 480)),
        ((6000, 4000), (480, 320)),
        ((4000, 20), (480, 2)),
        ((20, 4000), (2, 480)),
        ((1, 1), (480, 480)),
    ],
)
def test_images_of_any_size(size: tuple[int, int], picture: tuple[int, int]) -> None:
    mask = mask_of(size, slice(0, max(1, size[1] // 2)), slice(0, max(1, size[0] // 2)))
    drawn = draw_overlay(grounding_of(TEXT, [phrase_of(TEXT, "ring", mask)], size=size), SIDE)
    assert drawn.width >= picture[0] + 2 * MARGIN and drawn.height >= picture[1] + 2 * MARGIN
    assert max(drawn.size) < 1200


@pytest.mark.parametrize(
    "text",
    ["", "Dog", "画像には赤い輪と青い四角があります。" * 30, "w" * 5000, "👩\u200d🚀 \U0001f431 \x1b[31m \ud800 é",
     "a\n\n* b\n* c", "the red ring stands . " * 3000],
)  # fmt: skip
def test_texts_of_any_kind(text: str) -> None:
    cut = draw_overlay(grounding_of(text, finished=False), SIDE)
    whole = draw_overlay(grounding_of(text), SIDE)
    assert cut.height > whole.height  # one line more: that it was cut off
    assert whole.height < 3600


def test_long_words_and_lines_stay_inside() -> None:
    text = "w" * 300 + " " + "a few words " * 50
    drawn = np.asarray(draw_overlay(grounding_of(text, [phrase_of(text, "w" * 300, mask_of())]), SIDE))
    assert (drawn[:, -MARGIN:] == 255).all() and (drawn[-MARGIN:] == 255).all()


def test_sixty_phrases_have_numbers_of_their_own_places() -> None:
    text = "the ring " * 60
    phrases = [phrase_of(text, "the ring", mask_of(columns=slice(k, k + 40)), after=9 * k) for k in range(60)]
    first, more = (draw_overlay(grounding_of(text, phrases[:n]), SIDE) for n in (1, 60))
    assert more.height > first.height
    assert COLOURS[0] == colour_of(len(COLOURS))


def test_given_words_have_no_scores() -> None:
    text = "the red ring\nthe dog"
    phrases = [phrase_of(text, phrase, mask_of(), score=None) for phrase in text.split("\n")]
    assert draw_overlay(grounding_of(text, phrases, question=None), SIDE).width > SIDE


def test_depth_is_what_a_plain_loop_counts() -> None:
    mask = np.random.default_rng(0).random((14, 17)) > 0.15
    padded = np.pad(mask, 20)
    for row, column in np.ndindex(mask.shape):
        reach = 0
        while padded[row + 20 - reach : row + 21 + reach, column + 20 - reach : column + 21 + reach].all():
            reach += 1
        assert depth(mask)[row, column] == reach


def test_numbers_lie_on_what_is_seen_of_their_masks_and_clear_of_each_other() -> None:
    size = (480, 360)
    large, inside, same = (
        mask_of(size, slice(0, 360), slice(0, 300)),
        mask_of(size, slice(100, 300), slice(60, 240)),
        None,
    )
    same = inside.copy()
    found = places({0: large, 1: inside, 2: same}, size)
    for number, mask in enumerate((large, inside, same)):
        x, y = found[number]
        assert mask[y, x]
    x, y = found[0]
    assert not inside[y, x]
    (x1, y1), (x2, y2) = found[1], found[2]
    assert np.hypot(x1 - x2, y1 - y2) >= BADGE


def test_a_number_does_not_hide_a_small_mask() -> None:
    size = (480, 360)
    (x, y) = places({0: mask_of(size, slice(200, 210), slice(100, 112))}, size)[0]
    assert 95 <= x <= 117 and 200 - BADGE <= y < 190
