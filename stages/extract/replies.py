"""The LMM's own answers: what of its output ids is kept, and which words they are; without the weights."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any

from manifests.schema import Reply


def reply_of(tokenizer: Any, ids: Sequence[int], ends: Collection[int]) -> Reply:
    """What was said by generated `ids`, up to the first of the tokens `ends`, and what follows it.

    An answer without a word has no ids.
    """
    count = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    said = list(ids[:count])
    text, words = words_of(tokenizer, said)
    return Reply(ids=tuple(said) if words else (), words=tuple(words), text=text, finished=count < len(ids))


def words_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of the ids, special tokens left out, and of each id the whitespace-separated word that it is part of.

    Words are numbered from 0, each has a token; [] where there is none. A token's last character decides; white space,
    a special token and the first bytes of a character belong to what follows. A word that so has no token is written as
    one with the next.
    """

    def decoded(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    text = decoded(len(ids))
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if not starts:
        return "", []
    words, end = [], 0
    for count in range(1, len(ids) + 1):
        # a character whose bytes are not all there is decoded as another one, and not yet of the text
        before, end = end, max(end, _shared(decoded(count), text))
        last = end - 1 if end > before else end
        while last < len(text) and text[last].isspace():
            last += 1
        words.append(bisect_right(starts, last) - 1)
    heard = sorted(set(words))
    if len(heard) < len(starts):
        parts, first = text.split(), [0, *(word + 1 for word in heard)]
        text = " ".join("".join(parts[start : word + 1]) for start, word in zip(first, heard, strict=False))
        words = [heard.index(word) for word in words]
    return text.strip(), words


def _shared(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
