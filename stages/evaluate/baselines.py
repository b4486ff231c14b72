"""Keyword choice from the words alone: every noun phrase, and a lexicon of words that training grounds.

Both are `keywords.Chooser`s: words -> int64 [words], -1 where not chosen, else the number of the phrase.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from manifests.scenes.language import NUMBERS, PLURALS
from manifests.scenes.world import COLOURS, HELD_OUT_TEXTURE, SHAPES, SIZES, STUFF, TEXTURES

CLAUSES: Final = {"that": "t", "is": "b", "are": "b", "and": "c", ",": ","}
_OTHER_NOUNS = ("thing", "things", "picture", "background", "side", "colour")


def normal(word: str) -> str:
    """A word as both baselines look it up: lower case, without punctuation around it ("Ring," -> "ring")."""
    return word.lower().strip(".,;:!?\"'()")


@dataclass(frozen=True, kw_only=True, slots=True)
class NounPhrases:
    """Chooses every noun phrase: [determiner] (number | adjective | place)* noun+, or determiner place ("the left").

    Adjectives that follow belong to it: "that is small and red", ", small and red".
    It stands in for spaCy's noun chunks, for a closed vocabulary: whoever names the word classes needs no tagger.
    Pronouns ("we") are left out, and so is "no" ("no star" -> "star").
    """

    determiners: frozenset[str]
    modifiers: frozenset[str]
    nouns: frozenset[str]
    places: frozenset[str]
    """Words that are nouns after a determiner, modifiers before a noun, and neither in "is left of"."""

    @classmethod
    def for_scenes(cls) -> NounPhrases:
        """The word classes of the rendered scenes' language."""
        return cls(
            determiners=frozenset({"the", "a", "an", "this", "some"}),
            modifiers=frozenset({*COLOURS, *SIZES, *TEXTURES, HELD_OUT_TEXTURE, "one", *NUMBERS.values()}),
            nouns=frozenset({*SHAPES, *PLURALS.values(), *STUFF, *_OTHER_NOUNS}),
            places=frozenset({"left", "right", "top", "bottom", "middle"}),
        )

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        labels = np.full(len(words), -1, np.int64)
        classes = "".join(self._word_class(normal(word) or word) for word in words)
        for number, phrase in enumerate(re.finditer("(d?[mp]*n+|dp)((tb|,)m(cm)*)?", classes)):
            labels[phrase.start() : phrase.end()] = number
        return labels

    def _word_class(self, word: str) -> str:
        if word in self.determiners:
            return "d"
        if word in self.modifiers:
            return "m"
        if word in self.places:
            return "p"
        return "n" if word in self.nouns else CLAUSES.get(word, "-")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lexicon:
    """Chooses the words that training texts grounded more often than not; touching ones are one phrase."""

    grounded: frozenset[str]

    @classmethod
    def fit(cls, texts: Iterable[tuple[Sequence[str], np.ndarray]]) -> Lexicon:
        """texts: (words, truth int [words], -1 where ungrounded) of the training split, never the one evaluated."""
        balance: Counter[str] = Counter()
        for words, truth in texts:
            for word, label in zip(words, truth, strict=True):
                balance[normal(word)] += 1 if label >= 0 else -1
        return cls(grounded=frozenset(word for word, surplus in balance.items() if word and surplus > 0))

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        return np.array([0 if normal(word) in self.grounded else -1 for word in words], np.int64)
