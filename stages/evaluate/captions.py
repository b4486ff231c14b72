"""METEOR and CIDEr of generated captions: pycocoevalcap's jars and code (extra `gcg`), which need Java.

Both see the words of Stanford's PTB tokenizer, lower case, without pycocoevalcap's list of punctuation, as in its own
COCOEvalCap (https://github.com/salaniz/pycocoevalcap). METEOR is the score of all captions together (their matches are
added up first), not the mean of the captions' scores; CIDEr is the mean over captions, its word weights are counted in
the references given here: neither can be compared across different sets of images.

The jars are run on files with one caption a line, each in one Java process for all captions (METEOR's reads its
paraphrases for some ten seconds first), not through pycocoevalcap's pipes: those lose step at a line break inside a
caption, write into the package's folder and have no time limit.
Where a score can not be had it is absent, with the cure; it is never 0.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

TIMEOUT: Final = 1800.0  # seconds; thousands of captions take minutes
MAX_WORDS: Final = 512
"""More than an LMM is let say; METEOR takes minutes for a thousand equal words."""
MAX_CHARACTERS: Final = 100
_JAVA_ABSENT: Final = "no Java: apt install default-jre-headless"
_PACKAGE_ABSENT: Final = "no pycocoevalcap: pip install 'frozen-lmm-grounding[gcg]'"
_HEAP: Final = "-Xmx2G"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScore:
    """`value`: METEOR in [0, 1], CIDEr in [0, 10]; None where there is none, `absent` says why and what helps."""

    value: float | None
    absent: str = ""


def score_captions(
    references: Sequence[str], captions: Sequence[str], *, timeout: float = TIMEOUT
) -> dict[str, CaptionScore]:
    """ "meteor" and "cider" of captions against one reference each; texts may hold anything (`clean`).

    timeout: seconds for all Java together. Raises ValueError where the two differ in length.
    """
    if len(references) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(references)} references")
    if absent := why_absent():
        return _absent(absent)
    try:
        return dict(_scored(tuple(references), tuple(captions), timeout))
    except subprocess.TimeoutExpired:
        return _absent(f"Java took more than {timeout:g} s: evaluate fewer captions")
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        said_by_java = getattr(error, "stderr", None) or str(error)
        return _absent(f"Java failed ({' '.join(said_by_java.split())[-200:]}): try `java -version`")


@lru_cache(maxsize=2)  # both GCG protocols ask for the same texts where nothing has to be tidied
def _scored(references: tuple[str, ...], captions: tuple[str, ...], timeout: float) -> dict[str, CaptionScore]:
    deadline = time.monotonic() + timeout
    words = tokenise([*references, *captions], timeout=timeout)
    true, said = words[: len(references)], words[len(references) :]
    if not any(true):
        return _absent("no reference caption has a word")
    meteor = _meteor(true, said, timeout=deadline - time.monotonic())
    return {"meteor": CaptionScore(value=meteor), "cider": _cider(true, said)}


def why_absent() -> str:
    """What is missing, and how to install it; "" where captions can be scored."""
    if shutil.which("java") is None:
        return _JAVA_ABSENT
    return "" if _version() else _PACKAGE_ABSENT


def identity() -> dict[str, str]:
    """What scored the captions, for metrics.json."""
    return {"pycocoevalcap": _version() or "absent"}


def clean(text: str) -> str:
    """A caption as one line that no tool reads as more or fewer: the only place where captions are made harmless.

    All white space (every kind of line break is) becomes one space, characters that are not for reading (controls,
    halves of surrogate pairs) vanish, words after the 512th are dropped, and of a word all after 100 characters.
    """
    words = text.split(None, MAX_WORDS)[:MAX_WORDS]
    readable = (
        "".join(c for c in word[:MAX_CHARACTERS] if unicodedata.category(c) not in _UNREADABLE) for word in words
    )
    return " ".join(word for word in readable if word)


_UNREADABLE: Final = ("Cc", "Cs", "Cn", "Co")


def tokenise(texts: Sequence[str], *, timeout: float = TIMEOUT) -> list[str]:
    """Each text's words, a space between, as METEOR and CIDEr compare them; "" where nothing but punctuation is left.

    Raises what `subprocess.run` raises, and ValueError where the tokenizer gives another number of lines.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with TemporaryDirectory() as folder:
        file = _write(Path(folder) / "texts", [clean(text) for text in texts])
        options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
        arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options, str(file)]
        lines = _java(arguments, folder, timeout).split("\n")[:-1]
    if len(lines) != len(texts):
        raise ValueError(f"the tokenizer gave {len(lines)} lines for {len(texts)} captions")
    return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in lines]


def _meteor(references: Sequence[str], captions: Sequence[str], *, timeout: float) -> float:
    """METEOR 1.5 of all captions together; the arguments are tokenised."""
    from pycocoevalcap.meteor import meteor

    with TemporaryDirectory() as folder:
        files = [_write(Path(folder) / name, texts) for name, texts in (("said", captions), ("true", references))]
        jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
        printed = _java(["-jar", str(jar), *map(str, files), "-l", "en", "-norm"], folder, timeout)
    if (found := re.search(r"^Final score:\s+(\S+)\s*$", printed, re.MULTILINE)) is None:
        raise ValueError("METEOR printed no final score")
    return float(found[1])


def _cider(references: Sequence[str], captions: Sequence[str]) -> CaptionScore:
    from pycocoevalcap.cider.cider import Cider

    if len(references) < 2:  # the weight of a word is the logarithm of images / images that have it: 0 for all
        return CaptionScore(value=None, absent="CIDEr needs two captions or more")
    value, _ = Cider().compute_score(*({k: [text] for k, text in enumerate(of)} for of in (references, captions)))
    return CaptionScore(value=float(value))


def _absent(why: str) -> dict[str, CaptionScore]:
    return {name: CaptionScore(value=None, absent=why) for name in ("meteor", "cider")}


def _java(arguments: Sequence[str], folder: str, timeout: float) -> str:
    """What Java printed. It is killed after `timeout` seconds, and leaves files in `folder` only."""
    command = [str(shutil.which("java")), _HEAP, "-XX:-UsePerfData", f"-Djava.io.tmpdir={folder}", *arguments]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=max(0.0, timeout), check=True,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    return done.stdout


def _write(file: Path, lines: Sequence[str]) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return file


def _version() -> str | None:
    try:
        return metadata.version("pycocoevalcap")
    except metadata.PackageNotFoundError:
        return None
