"""What `ground` prints: the answer while it is said, then with its marked words; phrases, times, memory.

What an LMM says and how files are called is anybody's: nothing of it may command the terminal.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.ground import Grounding


def console(text: str) -> str:
    """What the terminal's encoding lacks is spelled out."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def plain(text: object) -> str:
    """Without anything that commands a terminal."""
    from stages.ground.results import printable

    return printable(str(text))


def one_line(text: object) -> str:
    """The same, in one line."""
    return " ".join(plain(text).split())


class Speech:
    """Prints the parts of an answer at once, without the white space that it begins with."""

    def __init__(self) -> None:
        self.begun = False

    def __call__(self, piece: str) -> None:
        piece = piece if self.begun else piece.lstrip()
        self.begun = self.begun or bool(piece)
        print(console(plain(piece)), end="", flush=True)


def complain(path: Path, reason: str) -> None:
    """One line on stderr: which image, and why."""
    from tqdm import tqdm

    tqdm.write(one_line(f"error: {reason if str(path) in reason else f'{path}: {reason}'}"), file=sys.stderr)


def marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with the words of each span in [1: brackets], or in the colours of the picture on a terminal."""
    from stages.ground.overlay import colour_of
    from stages.ground.results import cut_at

    pieces, coloured = [], in_colour()
    for piece, number in cut_at(text, spans):
        shown = plain(piece)
        if number >= 0 and coloured:
            red, green, blue = colour_of(number)
            shown = f"\x1b[1;38;2;{red};{green};{blue}m{number + 1}:{shown}\x1b[0m"
        elif number >= 0:
            shown = f"[{number + 1}: {shown}]"
        pieces.append(shown)
    return "".join(pieces)


def in_colour() -> bool:
    """Is stdout a terminal, and does nobody mind colours (https://no-color.org)?"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def said(grounding: Grounding) -> list[str]:
    """The answer with its marked words, and a line for each phrase."""
    lines = []
    if grounding.question is not None and grounding.phrases:  # else it was printed once
        lines.append(marked(grounding.text, [(phrase.start, phrase.end) for phrase in grounding.phrases]))
    if not grounding.text.strip():
        lines = ["(the LMM said nothing)"]
    elif not grounding.phrases:
        lines.append(f"no word is above λ = {grounding.lam:g}: a lower --lam selects more")
    if not grounding.finished:
        lines.append("(the answer was cut off: --max-answer-tokens)")
    pixels = grounding.image.width * grounding.image.height
    for number, phrase in enumerate(grounding.phrases, 1):
        score = "" if phrase.score is None else f"score {phrase.score:.2f}  "
        where = "no mask"
        if phrase.bbox is not None:
            x, y, width, height = phrase.bbox
            where = f"{100 * phrase.area / pixels:5.1f} %  box x {x:.0f} y {y:.0f} w {width:.0f} h {height:.0f}"
        lines.append(f"  {number:>2}  {score}{where}  {one_line(phrase.text)}")
    return lines


def times(answered: float, masked: float) -> str:
    """Both in seconds since the question; answered: 0 where nothing was asked."""
    answer = f"{answered:.2f} s to the answer, " if answered else ""
    return f"  {answer}{masked:.2f} s to the masks"


def shares(seconds: Mapping[str, float]) -> list[str]:
    """A table of the seconds of each part."""
    whole = sum(seconds.values())
    rows = [f"{part:<10}{value:>9.2f}{100 * value / whole:>8.1f} %" for part, value in seconds.items()]
    return [f"{'part':<10}{'seconds':>9}{'share':>10}", *rows]


def peak_gib() -> dict[str, float]:
    """The most memory so far: of the process, and of the GPU if one was used."""
    import torch

    found = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = round(sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**30, 3)
    return found
