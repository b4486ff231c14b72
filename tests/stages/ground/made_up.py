"""Groundings made by hand: a text, phrases, squares for masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from manifests.masks import encode
from stages.extract.images import Box
from stages.ground.results import Grounding, Phrase, split_words

SQUARE = (slice(10, 40), slice(20, 60))


def phrase_of(text: str, phrase: str, mask: np.ndarray, *, score: float | None = 0.5, after: int = 0) -> Phrase:
    """`phrase` where it is in `text`, looked for from character `after`."""
    start = text.index(phrase, after)
    end = start + len(phrase)
    words = tuple(n for n, word in enumerate(split_words(text)) if start <= word.start < end)
    return Phrase(text=phrase, start=start, end=end, words=words, score=score, rle=encode(mask))


def grounding_of(
    text: str,
    phrases: Sequence[Phrase] = (),
    *,
    size: tuple[int, int] = (120, 90),
    question: str | None = "What is there?",
    finished: bool = True,
) -> Grounding:
    """size: width and height of the grey image."""
    return Grounding(
        image=Image.new("RGB", size, (128, 128, 128)),
        question=question,
        text=text,
        finished=finished,
        words=split_words(text),
        phrases=tuple(phrases),
        lam=None if question is None else 0.3,
        attention=np.zeros((0, 1, 1, 1), np.float16),
        box=Box(top=0, left=0, height=1, width=1, size=1),
        seconds={"answer": 1.0},
    )


def mask_of(size: tuple[int, int] = (120, 90), rows: slice = SQUARE[0], columns: slice = SQUARE[1]) -> np.ndarray:
    """bool [height, width], a rectangle."""
    mask = np.zeros(size[::-1], bool)
    mask[rows, columns] = True
    return mask
