"""Caption scores against pycocoevalcap's own classes and CIDEr's formula; hostile texts; what is absent.

METEOR reads its paraphrases for ten seconds whenever it starts, so it starts here twice only.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate import captions
from stages.evaluate.captions import MAX_WORDS, clean, score_captions, tokenise, why_absent

needs_java = pytest.mark.skipif(bool(why_absent()), reason=why_absent())
REFERENCES = [
    "A red ring on the grass, and a blue star.",
    "The man's horse doesn't run!",
    "two dogs play in the snow",
    "x",
]
CAPTIONS = ["a red circle is on the grass", "A horse that belongs to a man", "two dogs play in snow.", ""]


def cider(references: list[str], said: list[str]) -> float:
    """CIDEr-D from its formula (https://arxiv.org/abs/1411.5726, section 3 and 7), one reference each; sigma 6."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))

    total = 0.0
    for reference, caption in zip(references, said, strict=True):
        for n in range(1, 5):
            seen = Counter(gram for text in references for gram in set(grams(text, n)))
            weight = {g: math.log(len(references) / max(1, seen[g])) for t in (reference, caption) for g in grams(t, n)}
            true, own = ({g: c * weight[g] for g, c in grams(t, n).items()} for t in (reference, caption))
            product = sum(min(own[g], true.get(g, 0)) * true.get(g, 0) for g in own)
            norm = math.sqrt(sum(v * v for v in true.values()) * sum(v * v for v in own.values()))
            # the package's length is the number of pairs of words
            apart = sum(grams(caption, 2).values()) - sum(grams(reference, 2).values())
            total += 10 / 4 * (product / norm if norm else 0) * math.exp(-(apart**2) / (2 * 6**2))
    return total / len(references)


HOSTILE = [
    "a ||| dog ||| runs", "a dog\nruns\r\nfast\u2028far", "\ud800 a dog\x00 \x85 runs", "<!-- a dog", "|||", "\n",
    "EVAL ||| 1 2 3", "SCORE", "x" * 10**6, "a " * 5_000, "<p \n a", "猫 é ü 😀",
]  # fmt: skip


@needs_java
def test_scores_of_hostile_and_of_usual_captions_are_those_of_the_package() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    references, said = [*["a dog runs"] * len(HOSTILE), *REFERENCES], [*HOSTILE, *CAPTIONS]
    found = score_captions(references, said)
    true_words, words = tokenise(references), tokenise(said)
    expected, _ = Meteor().compute_score(*({k: [text] for k, text in enumerate(of)} for of in (true_words, words)))
    assert found["meteor"].value == pytest.approx(expected, abs=1e-12) and 0 < expected < 1
    assert found["cider"].value == pytest.approx(cider(true_words, words)) and found["cider"].value > 0
    assert found["cider"].absent == found["meteor"].absent == ""
    start = time.monotonic()
    assert score_captions(references, said) == found and time.monotonic() - start < 1  # remembered


@needs_java
def test_words_are_those_of_the_package_and_stay_in_their_lines() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    usual = REFERENCES + CAPTIONS[:3]
    expected = PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(usual)})
    lines = tokenise([*usual, *(f"line{k} {text}" for k, text in enumerate(HOSTILE))])
    assert lines[: len(usual)] == [text for (text,) in expected.values()]
    assert [line.split()[0] for line in lines[len(usual) :]] == [f"line{k}" for k in range(len(HOSTILE))]


@needs_java
def test_nothing_to_compare() -> None:
    assert captions._cider(REFERENCES, [""] * 4).value == 0
    assert "no reference caption has a word" in score_captions(["."], ["a"])["cider"].absent
    one = captions._cider(["a dog"], ["a dog"])
    assert one.value is None and "two captions" in one.absent


_TEXTS = st.lists(st.text(max_size=30) | st.sampled_from(["<", ">", "\u2028", "\r", "|||", "-LRB-"]), max_size=60)


@needs_java
@settings(max_examples=8, deadline=None)
@given(_TEXTS)
def test_every_text_is_one_line(texts: list[str]) -> None:
    lines = tokenise([f"line{k} {text} end{k}" for k, text in enumerate(texts)])
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [
        (f"line{k}", f"end{k}") for k in range(len(texts))
    ]


@given(st.text())
def test_clean_is_one_line_of_readable_words(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned.splitlines()) <= 1 and cleaned == clean(cleaned)
    cleaned.encode("utf-8")


def test_clean_by_hand() -> None:
    assert clean(" a\n\tdog \u2028 runs\x00 \ud83d ") == "a dog runs"
    assert clean("<p>a dog</p> ||| ünï 猫") == "<p>a dog</p> ||| ünï 猫"
    assert len(clean("a " * 10**6).split()) == MAX_WORDS and len(clean("x" * 10**6)) == 100


def test_absent_never_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if why_absent() != captions._PACKAGE_ABSENT:
        monkeypatch.setenv("PATH", str(tmp_path))  # no java there
        found = score_captions(["a"], ["b"])
        assert [s.value for s in found.values()] == [None, None]
        assert all("apt install default-jre-headless" in s.absent for s in found.values())
    (tmp_path / "java").write_text("#!/bin/sh\necho 'out of memory' >&2; exit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    if not why_absent():
        found = score_captions(["a", "b"], ["b", "c"])
        assert found["meteor"].value is None and "out of memory" in found["cider"].absent
    monkeypatch.setattr(captions, "_version", lambda: None)  # as where the extra is not installed
    found = score_captions(["a"], ["b"])
    assert found["cider"].value is None and "pip install 'frozen-lmm-grounding[gcg]'" in found["cider"].absent
    assert captions.identity() == {"pycocoevalcap": "absent"}


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 captions for 1 references"):
        score_captions(["a"], ["a", "b"])


@needs_java
def test_time_is_limited_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    start = time.monotonic()
    found = score_captions(REFERENCES, CAPTIONS, timeout=1.0)  # METEOR reads its paraphrases for longer
    assert time.monotonic() - start < 5
    assert found["meteor"].value is None and "more than 1 s" in found["meteor"].absent
    assert list(tmp_path.iterdir()) == []
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert "java" not in names


def test_importing_needs_neither_java_nor_the_package() -> None:
    code = "import sys; import stages.evaluate.gcg, stages.evaluate.captions; assert 'pycocoevalcap' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
