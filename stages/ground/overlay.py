"""The picture of a grounding: the image with the masks of its phrases, and a legend.

    draw_overlay(grounding).save("overlay.png")

Every phrase has a colour and a number, in the image as in the legend: the numbers are for those who can not tell the
colours apart, and for more phrases than there are colours.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from stages.evaluate.conversations import COLOURS, Caption, draw_caption
from stages.evaluate.pictures import INK, LINE, MUTED, PAPER, Colour, font, paste_rounded, shortened
from stages.ground.badges import badge, places
from stages.ground.results import Grounding, Phrase, printable

SIDE: Final = 900
"""Longer side of the image in the picture, pixels, unless told otherwise."""
_MARGIN, _GAP, _LINE, _ROW, _COLUMN, _TEXT = 32, 28, 32, 36, 420, 20  # pixels; of the font: 20
_MOST_LINES: Final = 80  # of the answer; the JSON has all of it


def draw_overlay(grounding: Grounding, side: int = SIDE) -> Image.Image:
    """RGB. The image, longer side `side` pixels, below it (beside it, if it is no wider than high) the legend.

    Characters that DejaVu Sans does not know are boxes.
    """
    picture = _with_masks(grounding, side)
    beside = picture.width <= picture.height
    text_width = _COLUMN if beside else max(_COLUMN, picture.width)
    legend = _legend(grounding, text_width)
    if beside:
        size = (picture.width + _GAP + text_width, max(picture.height, legend.height))
        place = (picture.width + _GAP, 0)
    else:
        size, place = (text_width, picture.height + _GAP + legend.height), (0, picture.height + _GAP)
    sheet = Image.new("RGB", (size[0] + 2 * _MARGIN, size[1] + 2 * _MARGIN), PAPER)
    paste_rounded(sheet, picture, _MARGIN, _MARGIN)
    sheet.paste(legend, (place[0] + _MARGIN, place[1] + _MARGIN))
    return sheet


def colour_of(number: int) -> Colour:
    """Of a phrase."""
    return COLOURS[number % len(COLOURS)]


def _with_masks(grounding: Grounding, side: int) -> Image.Image:
    """The image with masks and numbers, longer side `side` pixels."""
    image, most = grounding.image, 2 * side  # masks of 60 phrases at a camera's size would be gigabytes
    if max(image.size) > most:
        scale = most / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    masks = {k: _resized(phrase, image.size) for k, phrase in enumerate(grounding.phrases) if phrase.area}
    picture = draw_caption(np.asarray(image), Caption(words=(), phrases=(), masks=masks), side)
    for number, (x, y) in places(masks, picture.size).items():
        mark = badge(number + 1, colour_of(number), edge=True)
        picture.paste(mark, (x - mark.width // 2, y - mark.height // 2), mark)
    return picture


def _resized(phrase: Phrase, size: tuple[int, int]) -> np.ndarray:
    """bool [height, width]: the mask at another size (width, height); never without a pixel."""
    mask = phrase.mask
    if mask.shape == size[::-1]:
        return mask
    share = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
    return share >= max(1, min(128, int(share.max())))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word where it is drawn. number: of its phrase or -1.  first: of the phrase; has its number in front."""

    text: str
    number: int
    first: bool
    left: int
    line: int
    width: int


def _legend(grounding: Grounding, width: int) -> Image.Image:
    """Question, answer with marked words, and the phrases, `width` pixels wide."""
    asked = grounding.question is not None
    heading = f"“{' '.join(printable(grounding.question or '').split())}”" if asked else "Given words"
    question = _wrapped([(heading, -1)], width)
    runs = grounding.runs if grounding.text.strip() else [("(nothing was said)", -1)]
    answer = _wrapped(runs, width) if asked else []
    columns = max(1, width // _COLUMN) if len(grounding.phrases) > 4 else 1
    notes, rows, column_width = _notes(grounding), -(-len(grounding.phrases) // columns), width // columns
    tops = np.cumsum(
        [0, _height(question) + 6, _height(answer) + (18 if answer else 0), 18 if rows else 0, _ROW * rows]
    )
    legend = Image.new("RGB", (width, int(tops[-1]) + _LINE * len(notes)), PAPER)
    draw = ImageDraw.Draw(legend)
    _write(legend, question, int(tops[0]), MUTED)
    _write(legend, answer, int(tops[1]), INK)
    if rows:
        draw.line((0, int(tops[2]), width, int(tops[2])), LINE, 1)
    indent = badge(len(grounding.phrases), MUTED).width + 10
    for number, phrase in enumerate(grounding.phrases):
        column, row = divmod(number, rows)
        left, right = column * column_width, width if column + 1 == columns else (column + 1) * column_width - _GAP
        _row(legend, phrase, number, left, int(tops[3]) + _ROW * row, right - left, indent)
    for line, note in enumerate(notes):
        draw.text((0, int(tops[4]) + _LINE * line + _LINE // 2), note, MUTED, font(17), anchor="lm")
    return legend


def _notes(grounding: Grounding) -> list[str]:
    notes = []
    if not grounding.finished:
        notes.append("The answer was cut off.")
    if not grounding.phrases:
        notes.append(f"No word was selected at λ = {grounding.lam:g}." if grounding.lam is not None else "No words.")
    return notes


def _row(legend: Image.Image, phrase: Phrase, number: int, left: int, top: int, width: int, indent: int) -> None:
    """Number, text and score of a phrase."""
    draw, middle = ImageDraw.Draw(legend), top + _ROW // 2
    mark = badge(number + 1, colour_of(number), hollow=not phrase.area)
    legend.paste(mark, (left, middle - mark.height // 2), mark)
    note = "" if phrase.score is None else f"{phrase.score:.2f}"
    note = note if phrase.area else f"{note}  no mask".strip()
    draw.text((left + width, middle), note, MUTED, font(17), anchor="rm")
    text = " ".join(printable(phrase.text).split())[:400]
    room = width - indent - int(draw.textlength(note, font(17))) - 16
    draw.text((left + indent, middle), shortened(draw, text, room), INK, font(18), anchor="lm")


def _height(pieces: Sequence[_Piece]) -> int:
    return _LINE * (1 + max((piece.line for piece in pieces), default=-1))


def _wrapped(runs: Sequence[tuple[str, int]], width: int) -> list[_Piece]:
    """Where the words of a text go, in lines of `width` pixels; a line break of the text is one here."""
    pieces: list[_Piece] = []
    left, line, space = 0, 0, font(_TEXT).getlength(" ")
    for text, number in runs:
        first = True
        for token in re.findall(r"\s+|\S+", printable(text)):
            if token.isspace():
                left, line = (0, line + 1) if "\n" in token else (left + int(space), line)
                continue
            for part in _parts(token, width, number, first):
                taken = _width(part, number, first)
                if left and left + taken > width and (number >= 0 or len(part) > 1):  # a full stop may stand out
                    left, line = 0, line + 1
                if line == _MOST_LINES:
                    return [*pieces, _Piece("…", -1, False, 0, line, 0)]
                pieces.append(_Piece(part, number, first, left, line, taken))
                left, first = left + taken, False
    return pieces


def _parts(token: str, width: int, number: int, first: bool) -> Iterator[str]:
    """A word in parts that fit into a line: those of languages without spaces are long."""
    while len(token) > 1 and _width(token[:width], number, first) > width:
        fits = bisect_right(range(2, width), width, key=lambda n: _width(token[:n], number, first)) + 1
        yield token[:fits]
        token, first = token[fits:], False
    yield token


def _width(text: str, number: int, first: bool) -> int:
    """Pixels that a word takes, with its phrase's number if it is the first."""
    found = int(np.ceil(font(_TEXT, bold=number >= 0).getlength(text)))
    return found + (badge(number + 1, colour_of(number), small=True).width + 5 if number >= 0 and first else 0)


def _write(legend: Image.Image, pieces: Sequence[_Piece], top: int, ink: Colour) -> None:
    """Draws words; those of a phrase in its colour on a tint of it."""
    draw = ImageDraw.Draw(legend)
    for piece, after in zip(pieces, [*pieces[1:], None], strict=False):
        middle, left = top + _LINE * piece.line + _LINE // 2, piece.left
        if piece.number < 0:
            draw.text((left, middle), piece.text, ink, font(_TEXT), anchor="lm")
            continue
        colour = colour_of(piece.number)
        goes_on = after is not None and after.number == piece.number and after.line == piece.line
        right = after.left if goes_on and after else left + piece.width
        tint: Colour = tuple(255 - round(0.12 * (255 - value)) for value in colour)  # type: ignore[assignment]
        draw.rectangle((left, middle - 14, right, middle + 14), tint)
        if piece.first:
            mark = badge(piece.number + 1, colour, small=True)
            legend.paste(mark, (left, middle - mark.height // 2), mark)
            left += mark.width + 5
        draw.text((left, middle), piece.text, colour, font(_TEXT, bold=True), anchor="lm")
