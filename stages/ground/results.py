"""What grounding gives: words with scores, phrases with masks, and the JSON of both. Plain data: it can be pickled.

Frames: masks and boxes are in pixels of the upright image; spans count characters of `Grounding.text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from manifests.masks import Rle, area, decode
from stages.evaluate.scoring import PUNCTUATION
from stages.extract.images import Box

SCHEMA: Final = 1  # of the JSON; raised when a field changes its meaning
PARTS: Final = ("answer", "capture", "sam", "selector", "decode")
"""Of `Grounding.seconds`: the LMM's words; the pass over them that captures; SAM's encoder; which words; masks."""


_JOINERS: Final = frozenset("\u200c\u200d")
"""Not printable as Python counts, but parts of words and of emoji."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word of the text, split at white space: text[start:end].

    score: the keyword selector's, in [0, 1]; None where words were given to be grounded.
    """

    text: str
    start: int
    end: int
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """Words that name something, and where it is.

    text: without the punctuation around it, Grounding.text[start:end].  words: their numbers in Grounding.words.
    score: mean of the words' scores; None where the words were given.  rle, coarse_rle: COCO run lengths of the last
    mask and of the mask decoder's; coarse_rle is None for a head that does not refine.
    """

    text: str
    start: int
    end: int
    words: tuple[int, ...]
    score: float | None
    rle: Rle
    coarse_rle: Rle | None = None

    @property
    def mask(self) -> np.ndarray:
        """bool [height, width], decoded at every access."""
        return decode(self.rle)

    @property
    def coarse_mask(self) -> np.ndarray:
        """bool [height, width]: before the mask refiner; the same as `mask` for a head that does not refine."""
        return decode(self.coarse_rle or self.rle)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return area(self.rle)

    @property
    def bbox(self) -> tuple[float, float, float, float] | None:
        """(x, y, width, height) as in COCO; None for a mask without pixels."""
        if not self.area:
            return None
        x, y, width, height = coco.toBbox({"size": self.rle["size"], "counts": self.rle["counts"].encode()}).tolist()
        return x, y, width, height

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "text": self.text,
            "start": self.start,
            "end": self.end,
            "words": list(self.words),
            "score": _rounded(self.score),
            "bbox": None if self.bbox is None else list(self.bbox),
            "area": self.area,
            "mask": self.rle,
            "coarse_mask": self.coarse_rle,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grounding:
    """A text about an image, and what its words point at."""

    image: Image.Image
    """RGB, upright."""
    question: str | None
    """None where words were given."""
    text: str
    """The LMM's answer; or the given phrases, one a line."""
    finished: bool
    """False: the answer was cut off."""
    words: tuple[Word, ...]
    phrases: tuple[Phrase, ...]
    """In the order of the text."""
    lam: float | None
    """λ, the keyword selector's threshold; None where words were given."""
    attention: np.ndarray = field(repr=False)
    """float16 [words, C, h, w]: the attention maps of every word, each of mean 1, over the LMM's square; where words
    were given: [phrases, C, h, w]."""
    box: Box
    """Where the image lies in that square."""
    seconds: dict[str, float]
    """By `PARTS`: what this grounding took, 0 for what was there already; `answer` is that of its answer."""

    def attention_of(self, word: int) -> np.ndarray:
        """float16 [C, h', w']: the maps of a word (of its phrase, where words were given) on the image's cells."""
        part, slot = self.box.scaled(self.attention.shape[-1]), word if self.lam is not None else self.numbers[word]
        return self.attention[slot, :, part.top : part.top + part.height, part.left : part.left + part.width]

    @property
    def numbers(self) -> tuple[int, ...]:
        """For each word the number of its phrase, -1 for none."""
        owner = {word: number for number, phrase in enumerate(self.phrases) for word in phrase.words}
        return tuple(owner.get(word, -1) for word in range(len(self.words)))

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The whole text in pieces, each with the number of its phrase, -1 for what lies between phrases."""
        return cut_at(self.text, [(phrase.start, phrase.end) for phrase in self.phrases])

    def unrefined(self) -> Grounding:
        """The same with the mask decoder's masks in the place of the refined ones."""
        coarse = (replace(phrase, rle=phrase.coarse_rle or phrase.rle, coarse_rle=None) for phrase in self.phrases)
        return replace(self, phrases=tuple(coarse))

    def record(self) -> dict[str, Any]:
        """As JSON: docs/ground.md says what each field is."""
        return {
            "schema": SCHEMA,
            "height": self.image.height,
            "width": self.image.width,
            "question": self.question,
            "text": self.text,
            "finished": self.finished,
            "lam": self.lam,
            "words": [{"text": w.text, "start": w.start, "end": w.end, "score": _rounded(w.score)} for w in self.words],
            "phrases": [phrase.record() for phrase in self.phrases],
            "seconds": {part: round(self.seconds.get(part, 0.0), 4) for part in PARTS},
        }


def split_words(text: str, scores: Sequence[float] | None = None) -> tuple[Word, ...]:
    """The words of a text where they stand in it. scores: float [words]."""
    found = list(re.finditer(r"\S+", text))
    given: Sequence[float | None] = [None] * len(found) if scores is None else [float(score) for score in scores]
    return tuple(
        Word(text=match[0], start=match.start(), end=match.end(), score=score)
        for match, score in zip(found, given, strict=True)
    )


def cut_at(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """A text cut at spans that do not overlap and are in its order: (piece, number of its span or -1)."""
    pieces, done = [], 0
    for number, (start, end) in enumerate(spans):
        pieces += [(text[done:start], -1), (text[start:end], number)]
        done = end
    return [(piece, number) for piece, number in [*pieces, (text[done:], -1)] if piece]


def printable(text: str) -> str:
    """For a terminal or a picture: what is not to be read (controls, reversals of direction, halves of characters) is
    spelled out, as \\x1b; line breaks stay, a tab is a space."""
    return "".join(c if c.isprintable() or c == "\n" else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    if character == "\t" or (character.isspace() and character > "\x1f"):
        return " "
    if character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """text[start:end] without the punctuation around it; as it is where there is nothing else."""
    inner = text[start:end].strip(PUNCTUATION)
    if not inner:
        return start, end
    start = text.index(inner, start)
    return start, start + len(inner)


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)
