"""What the page keeps of a user: one conversation about one picture, bounded, forgotten when the user leaves."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final

import numpy as np

from stages.extract.images import Box
from stages.ground import page_pictures, page_view
from stages.ground.grounder import ON_TEXT, Answer, Grounder, SeenImage
from stages.ground.page_view import View
from stages.ground.results import Grounding, split_words

ATTENTIVE: Final = 3
"""Turns whose attention is kept: 68 MB each for a sentence of LLaVA-1.5-7B."""
SHOWN: Final = 12
"""Turns that are shown; older ones are forgotten."""
SESSIONS: Final = 24
IDLE: Final = 3600.0  # seconds


@dataclass(kw_only=True, slots=True, eq=False)
class Turn:
    """answer: what was grounded, while its λ can be changed."""

    grounding: Grounding
    answer: Answer | None = None
    drawn: dict[bool, str] = field(default_factory=dict)
    """Its layers, refined or not, once they were drawn."""


@dataclass(kw_only=True, slots=True, eq=False)
class Talk:
    """A conversation about one picture.

    scene: its number among those offered, None for an upload.  focus: (turn, word) that was pointed at last.
    """

    seen: SeenImage | None = None
    scene: int | None = None
    photo: str = ""
    turns: dict[int, Turn] = field(default_factory=dict)
    last: Answer | None = None
    focus: tuple[int, int] | None = None
    count: int = 0

    @classmethod
    def about(cls, seen: SeenImage, scene: int | None) -> Talk:
        """A new conversation."""
        return cls(seen=seen, scene=scene, photo=page_pictures.photo(seen.image))

    def again(self) -> Talk:
        """A new conversation about the same picture."""
        return Talk(seen=self.seen, scene=self.scene, photo=self.photo)

    def answer(self, grounder: Grounder, question: str, *, most: int, earlier: bool, on_text: ON_TEXT) -> Answer:
        """Let the LMM answer; `earlier`: it sees the turns before. The turn is shown once `add` was called."""
        assert self.seen is not None
        after = self.last if earlier else None
        self.last = grounder.answer(self.seen, question, after=after, max_new_tokens=most, on_text=on_text)
        return self.last

    def add(self, grounding: Grounding, answer: Answer | None = None) -> None:
        """One more turn: it is in focus, and what is too old is let go."""
        number, self.count = self.count, self.count + 1
        turns = {**self.turns, number: Turn(grounding=grounding, answer=answer)}
        for old in list(turns)[:-ATTENTIVE]:
            turns[old] = _faded(turns[old])
        self.turns = {each: turns[each] for each in list(turns)[-SHOWN:]}  # a new dict: others may be reading
        self.focus = (number, first_marked(grounding)) if grounding.words else None

    def choose(self, grounder: Grounder, lam: float) -> None:
        """Mark words by another λ, in all turns that can; the LMM does not run."""
        for turn in list(self.turns.values()):
            if turn.answer is not None and turn.grounding.lam not in (None, lam):
                before = turn.grounding.seconds
                found = grounder.ground(turn.answer, lam=lam)
                kept = {part: found.seconds[part] or before[part] for part in ("capture", "sam")}
                turn.grounding, turn.drawn = replace(found, seconds=found.seconds | kept), {}

    def focused(self) -> Grounding | None:
        """What was pointed at last is a word of it; the last turn where nothing was."""
        if self.focus is not None and self.focus[0] in self.turns:
            return self.turns[self.focus[0]].grounding
        return next((turn.grounding for turn in reversed(self.turns.values())), None)

    def point(self, turn: int, word: int) -> None:
        """Put a word in focus, if there is such a one."""
        if turn in self.turns and 0 <= word < len(self.turns[turn].grounding.words):
            self.focus = (turn, word)

    def layers(self, view: View) -> dict[int, str]:
        """The masks of all turns; each turn's are drawn once."""
        found = {}
        for number, turn in self.turns.items():
            drawn = turn.drawn  # `choose` may replace it
            if view.refined not in drawn:
                drawn[view.refined] = page_view.turn_layers(number, turn.grounding, view)
            found[number] = drawn[view.refined]
        return found


def first_marked(grounding: Grounding) -> int:
    """The first word of the first phrase, or the first word."""
    return min((phrase.words[0] for phrase in grounding.phrases), default=0)


def unmarked(answer: Answer, channels: int) -> Grounding:
    """An answer of which no word is marked: the head has no keyword selector."""
    return Grounding(
        image=answer.image,
        question=answer.question,
        text=answer.text,
        finished=answer.finished,
        words=split_words(answer.text),
        phrases=(),
        lam=None,
        attention=np.zeros((0, channels, 1, 1), np.float16),
        box=Box(top=0, left=0, height=1, width=1, size=1),
        seconds={"answer": answer.seconds},
    )


def _faded(turn: Turn) -> Turn:
    """A turn without its attention; its masks stay."""
    grounding = replace(turn.grounding, attention=turn.grounding.attention[:0].copy())
    return Turn(grounding=grounding, drawn=turn.drawn)


class Sessions:
    """The talks of all users, by the name that Gradio gives a browser's tab.

    At most `most`; the longest idle one goes first, and so do those that were idle for `idle` seconds.
    """

    def __init__(self, most: int = SESSIONS, idle: float = IDLE, clock: Callable[[], float] = time.monotonic):
        self.most, self.idle, self.clock = most, idle, clock
        self._talks: OrderedDict[str, tuple[float, Talk]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._talks)

    def __getitem__(self, name: str) -> Talk:
        """The user's talk; an empty one for who is new, or was forgotten."""
        with self._lock:
            _, talk = self._talks.get(name, (0.0, None))
            return self._keep(name, Talk() if talk is None else talk)

    def put(self, name: str, talk: Talk) -> Talk:
        """The user begins another."""
        with self._lock:
            return self._keep(name, talk)

    def forget(self, name: str) -> None:
        """The user has left."""
        with self._lock:
            self._talks.pop(name, None)

    def _keep(self, name: str, talk: Talk) -> Talk:
        now = self.clock()
        self._talks[name] = (now, talk)
        self._talks.move_to_end(name)
        while len(self._talks) > self.most or now - next(iter(self._talks.values()))[0] > self.idle:
            self._talks.popitem(last=False)
        return talk
