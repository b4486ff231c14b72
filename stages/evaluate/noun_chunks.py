"""spaCy's noun chunks as a keyword choice without a selector (extra `text`): the baseline of the F-LMM paper.

Our words are split at white space, spaCy's tokens are not; both are positions in the same characters. A word that any
character of a chunk falls into is chosen ("ring," with its comma). Chunks are as spaCy gives them, pronouns too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.errors import ModelError
from stages.extract.checkpoint import file_sha256, first_line

_BLOCK: Final = 50_000  # characters parsed at a time: a parser needs a gigabyte for some 100,000 words
_WORD: Final = 100  # characters of a word that are looked at; spaCy refuses texts of a million


class NounChunks:
    """A `keywords.Chooser`: words -> int64 [words], -1 where not chosen, else the number of the chunk."""

    def __init__(self, source: str):
        """source: an installed spaCy model's name, or a folder. ModelError where it can not be had or has no parser."""
        self._nlp = _loaded(source)
        meta = self._nlp.meta
        self.name = f"spacy noun chunks ({meta.get('lang')}_{meta.get('name')} {meta.get('version')})"
        """The measures' method."""
        self.identity = _identity(self._nlp)

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        labels = np.full(len(words), -1, np.int64)
        words = [word[:_WORD] for word in words]
        start, number = 0, 0
        while start < len(words):
            stop = _block_end(words, start)
            ends = np.cumsum([len(word) + 1 for word in words[start:stop]])  # of each word and the space after it
            for chunk in self._nlp(" ".join(words[start:stop])).noun_chunks:
                first, last = np.searchsorted(ends, [chunk.start_char, chunk.end_char - 1], side="right") + start
                span = labels[first : last + 1]
                span[span < 0] = number  # where two chunks share a word ("man-made"), the first has it
                number += 1
            start = stop
        return labels


def _block_end(words: Sequence[str], start: int) -> int:
    """Where to stop so that the words from `start` on have at most `_BLOCK` characters, but one word at least."""
    size, stop = len(words[start]), start + 1
    while stop < len(words) and size + len(words[stop]) < _BLOCK:
        size += len(words[stop]) + 1
        stop += 1
    return stop


def _loaded(source: str) -> Any:
    try:
        import spacy
    except ImportError:
        raise ModelError(
            f"--spacy-model {source} needs spaCy: pip install 'frozen-lmm-grounding[text]', and a model, for example "
            "python -m spacy download en_core_web_sm"
        ) from None
    try:
        nlp = spacy.load(source, exclude=["ner", "lemmatizer"])  # noun chunks need neither
        list(nlp("a dog").noun_chunks)  # raises where there is no parser, or no chunks in the language
    except Exception as error:  # spaCy raises OSError, ValueError, NotImplementedError, catalogue's own, …
        raise ModelError(
            f"--spacy-model {source} gives no noun chunks ({first_line(error)}): name an installed model that parses, "
            "for example after python -m spacy download en_core_web_sm"
        ) from None
    return nlp


def _identity(nlp: Any) -> dict[str, Any]:
    """Name, version and one sha256 of all files of the model, names included."""
    import spacy

    digest = hashlib.sha256()
    folder = Path(nlp.path)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    meta = nlp.meta
    return {
        "name": f"{meta.get('lang')}_{meta.get('name')}",
        "version": meta.get("version"),
        "spacy": spacy.__version__,
        "sha256": digest.hexdigest(),
    }
