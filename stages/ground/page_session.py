"""What the page keeps of a user: one conversation about one picture, bounded, forgotten when the user leaves."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from threading import Event, Lock, Thread
from typing import Final

import numpy as np

from stages.extract.images import Box
from stages.ground import page_pictures, page_view
from stages.ground.answer import Answer, SeenImage
from stages.ground.grounder import ON_TEXT, Grounder
from stages.ground.page_view import View
from stages.ground.results import Grounding, split_words

ATTENTIVE: Final = 3
"""Turns whose attention is kept: 68 MB each for a sentence of LLaVA-1.5-7B."""
SHOWN: Final = 12
"""Turns that are shown; older ones are forgotten."""
SESSIONS: Final = 24
KEPT: Final = 2 << 30
"""Bytes of attention and hidden states of all sessions together: some 25 sentences of LLaVA-1.5-7B, a small part of the
memory of a machine that runs it. Three turns of 24 sessions would be 5 GiB, with larger maps 40."""
IDLE: Final = 3600.0  # seconds
SWEEP: Final = 60.0
"""Seconds between looks for idle sessions."""


@dataclass(kw_only=True, slots=True, eq=False)
class Turn:
    """answer: what was grounded, while its λ can be changed."""

    grounding: Grounding
    answer: Answer | None = None
    drawn: dict[bool, str] = field(default_factory=dict)
    """Its layers, refined or not, once they were drawn."""
    clusters: dict[tuple[int, int], str] = field(default_factory=dict)
    """Addresses of pictures by (word, k), once they were drawn."""
    since: float = field(default_factory=time.monotonic)

    @property
    def nbytes(self) -> int:
        """Of its attention, and of what else was captured."""
        arrays = [self.grounding.attention]
        if self.answer is not None and (priors := self.answer.priors) is not None:
            arrays += [getattr(priors, each.name) for each in fields(priors) if each.name != "box"]
        return sum({id(array): array.nbytes for array in arrays}.values())  # the attention is both's


@dataclass(kw_only=True, slots=True, eq=False)
class Talk:
    """A conversation about one picture.

    scene: its number among those offered, None for an upload.  last: the answer that a question follows: of the last
    turn that was asked.  focus: (turn, word) that was pointed at last.  stamp: tells it from all other talks.
    """

    seen: SeenImage | None = None
    scene: int | None = None
    photo: str = ""
    turns: dict[int, Turn] = field(default_factory=dict)
    last: Answer | None = None
    focus: tuple[int, int] | None = None
    count: int = 0
    stamp: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def about(cls, seen: SeenImage, scene: int | None) -> Talk:
        """A new conversation."""
        return cls(seen=seen, scene=scene, photo=page_pictures.photo(seen.image))

    def again(self) -> Talk:
        """A new conversation about the same picture."""
        return Talk(seen=self.seen, scene=self.scene, photo=self.photo)

    def answer(self, grounder: Grounder, question: str, *, most: int, earlier: bool, on_text: ON_TEXT) -> Answer:
        """Let the LMM answer; `earlier`: it sees the turns before. It is a turn once `add` was called."""
        assert self.seen is not None
        after = self.last if earlier else None
        return grounder.answer(self.seen, question, after=after, max_new_tokens=most, on_text=on_text)

    def add(self, grounding: Grounding, answer: Answer | None = None) -> None:
        """One more turn: it is in focus, and what is too old is let go."""
        number, self.count = self.count, self.count + 1
        self.turns = self.turns | {number: Turn(grounding=grounding, answer=answer)}  # new: others may be reading
        for old in list(self.turns)[:-ATTENTIVE]:
            self.fade(old)
        self.turns = {each: self.turns[each] for each in list(self.turns)[-SHOWN:]}
        self.last = answer or self.last
        self.focus = (number, first_marked(grounding)) if grounding.words else None

    def fade(self, number: int) -> None:
        """Let go of what was captured of a turn; its masks stay, its λ does."""
        turn = self.turns[number]
        if turn.answer is not None:
            turn.answer.priors = None  # the answer itself may be followed by a question
        grounding = replace(turn.grounding, attention=turn.grounding.attention[:0].copy())
        self.turns = self.turns | {number: Turn(grounding=grounding, drawn=turn.drawn, since=turn.since)}

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


class Sessions:
    """The talks of all users, by the name that Gradio gives a browser's tab.

    At most `most`; the longest idle one goes first, and so do those that were idle for `idle` seconds. kept: bytes of
    what was captured (`Turn.nbytes`), see `fit`.
    """

    def __init__(
        self,
        most: int = SESSIONS,
        idle: float = IDLE,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.idle, self.kept, self.clock = most, idle, kept, clock
        self._talks: OrderedDict[str, tuple[float, Talk]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._talks)

    def __getitem__(self, name: str) -> Talk:
        """The user's talk; an empty one, which is not kept, for who is new, has left, or was forgotten."""
        with self._lock:
            _, talk = self._talks.get(name, (0.0, None))
            return Talk() if talk is None else self._keep(name, talk)

    def put(self, name: str, talk: Talk) -> Talk:
        """The user begins another."""
        with self._lock:
            return self._keep(name, talk)

    def forget(self, name: str) -> None:
        """The user has left."""
        with self._lock:
            self._talks.pop(name, None)

    def fit(self) -> None:
        """Let the oldest turns of all users fade until the rest is within the bytes; the newest one stays."""
        with self._lock:
            talks = [talk for _, talk in self._talks.values()]
        turns = [(turn.since, turn.nbytes, number, talk) for talk in talks for number, turn in talk.turns.items()]
        left = sum(size for _, size, _, _ in turns)
        for _, size, number, talk in sorted(turns, key=lambda each: each[0])[:-1]:
            if left <= self.kept:
                break
            if size:
                talk.fade(number)
                left -= size

    def sweep(self) -> None:
        """Forget those who were idle for too long."""
        with self._lock:
            self._drop(self.clock())

    @contextmanager
    def swept(self, every: float = SWEEP) -> Iterator[None]:
        """In the block idle sessions go though no user does anything. every: seconds."""
        ended = Event()

        def watch() -> None:
            while not ended.wait(every):
                self.sweep()

        Thread(target=watch, daemon=True, name="idle sessions").start()
        try:
            yield
        finally:
            ended.set()

    def _keep(self, name: str, talk: Talk) -> Talk:
        now = self.clock()
        self._talks[name] = (now, talk)
        self._talks.move_to_end(name)
        self._drop(now)
        return talk

    def _drop(self, now: float) -> None:
        while self._talks and (len(self._talks) > self.most or now - next(iter(self._talks.values()))[0] > self.idle):
            self._talks.popitem(last=False)
