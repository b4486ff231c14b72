"""Phrases of a caption: where labels stand in it, and the caption cut into pieces that each name one thing or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""First character and the one after the last."""


def find_labels(caption: str, labels: Sequence[str]) -> list[Span | None]:
    """Where each label stands in the caption, as whole words, upper and lower case being the same.

    Labels are in the order of the caption where that is possible: each is looked for after the one before. Where it is
    not, the longest label is placed first, each at its first place that is still free. A label that has more entries
    than places shares the last of them. None: the caption does not have it.
    """
    places = {label: _places(caption, label) for label in set(labels)}
    found: list[Span | None] = []
    place = 0
    for label in labels:
        span = next((s for s in places[label] if s[0] >= place), None)
        found.append(span)
        place = place if span is None else span[1]
    if all(span or not label.strip() for span, label in zip(found, labels, strict=True)):
        return found
    taken: set[Span] = set()
    covered = bytearray(len(caption))  # 1: a character of a place that is taken
    untried = {label: iter(spans) for label, spans in places.items()}  # no place becomes free again
    found = [None] * len(labels)
    for k in sorted(range(len(labels)), key=lambda k: -len(labels[k])):
        free = (s for s in untried[labels[k]] if covered.find(1, *s) < 0)
        shared = (s for s in reversed(places[labels[k]]) if s in taken)
        found[k] = span = next(chain(free, shared), None)
        if span is not None:
            taken.add(span)
            covered[slice(*span)] = b"\1" * (span[1] - span[0])
    return found


def _places(caption: str, label: str) -> list[Span]:
    if not label.strip():
        return []
    return [m.span() for m in re.finditer(rf"(?<!\w){re.escape(label.strip())}(?!\w)", caption, re.IGNORECASE)]


def divide(caption: str, spans: Sequence[Span]) -> list[tuple[str, tuple[int, ...]]]:
    """The caption in pieces, without the spaces between them; each with the numbers of the spans that it stands for.

    A span is widened to whole words. Equal spans are one piece. Where two overlap, the earlier ends where the later
    begins (as GLaMM's reader has it), and of two that begin together the longer has the words that the shorter leaves.
    A span of which nothing is left is in no piece.
    """
    groups: dict[Span, list[int]] = {}
    for number, span in enumerate(spans):
        groups.setdefault(_whole_words(caption, span), []).append(number)
    ordered = sorted(groups)
    pieces: list[tuple[str, tuple[int, ...]]] = []
    place = 0
    for span, (following, _) in pairwise([*ordered, (len(caption), len(caption))]):
        start = max(span[0], place)
        end = min(span[1], following) if following > start else span[1]
        if text := caption[start:end].strip():
            pieces += [(caption[place:start].strip(), ()), (text, tuple(groups[span]))]
            place = end
    return [piece for piece in [*pieces, (caption[place:].strip(), ())] if piece[0]]


def _whole_words(caption: str, span: Span) -> Span:
    """Without spaces at its ends, and with the rest of a word of which it has a part."""
    start, end = (min(max(n, 0), len(caption)) for n in span)
    while start < end and caption[start].isspace():
        start += 1
    while start < end and caption[end - 1].isspace():
        end -= 1
    while start < end and start > 0 and caption[start - 1].isalnum() and caption[start].isalnum():
        start -= 1
    while start < end < len(caption) and caption[end - 1].isalnum() and caption[end].isalnum():
        end += 1
    return start, max(start, end)
