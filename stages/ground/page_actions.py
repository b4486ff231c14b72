"""What the web page does, without Gradio: pictures, questions, given words, downloads; of any number of users."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Final

import torch
from PIL import Image

from manifests.errors import DatasetError, PipelineError
from manifests.pictures import BrokenPicture, opened_picture
from manifests.scenes.world import make_scene
from stages.analyze.labels import labels_of, shape_of
from stages.ground import page_pictures, page_view
from stages.ground.answer import Answer
from stages.ground.grounder import Grounder
from stages.ground.page_session import Sessions, Talk, unmarked
from stages.ground.page_view import Maps, View
from stages.ground.photos import open_photo
from stages.ground.results import Grounding
from stages.train_head.heads.checkpoint import learned_keywords

SCENES: Final = (
    *(("narratives", number) for number in (2, 0, 3, 5)),
    *(("shifted", number) for number in (1, 3)),
)
QUESTIONS: Final = (
    "What is in the picture?",
    "What is there from left to right?",
    "how many rings are there ?",
    "Please give me a description of the image.",
)
MAX_QUESTION: Final = 1000  # characters
MAX_UPLOAD_PIXELS: Final = 40_000_000
ORIENTATION: Final = 0x0112
"""The EXIF tag of a camera's rotation; 5 to 8 are on their side."""
WORKING_SIDE: Final = 1600
"""Larger uploads are made so large, pixels: masks are drawn at the picture's own size, several at a time."""
FULL: Final = "there is not enough memory for that: give a smaller picture, ask for a shorter answer, or begin anew"
log = logging.getLogger(__name__)


class _Unwanted(Exception):
    """Ends an answer that nobody waits for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What the page says of itself. tiny: the embedded LMM."""

    lmm: str = "tiny"
    head: str = "tiny"
    max_answer_tokens: int = 256

    def sentence(self, parameters: int) -> str:
        if self.lmm == "tiny":
            return (
                f"The LMM of this page is a toy of {parameters / 1e6:.1f} million parameters. It was trained on "
                "rendered scenes of coloured shapes on grass, sand, water, sky and brick, and knows nothing else: you "
                "may upload a photograph, but what is then said and outlined means nothing."
            )
        return (
            f"LMM: {self.lmm}, frozen. Head: {self.head}. The LMM’s words are its own; which of them are marked, and "
            "the masks, are the head’s, and both can be wrong."
        )


class Page:
    """One Grounder, and the talks of all users. What can go wrong raises PipelineError, a line for the user."""

    def __init__(self, grounder: Grounder, about: About):
        self.grounder, self.about, self.sessions = grounder, about, Sessions()
        self._clustering = Lock()  # K-means takes the cores that the LMM's answers need: one at a time
        self.selects = learned_keywords(grounder.head.record)
        _, layers, heads = shape_of(grounder.identity)
        of: dict[tuple[int, int], list[int]] = {}
        for label in labels_of(grounder.identity):
            of.setdefault((label.layer + 1, label.head + 1), []).append(label.map)
        self.maps = Maps(layers=layers, heads=heads, of=of)
        self.scenes = [Image.fromarray(make_scene(*scene).image) for scene in SCENES]
        notes = {"narratives": "held-out scene", "shifted": "held-out scene with looks that are in no training scene"}
        self.labels = [
            (page_pictures.photo(image), f"{number + 1}: {notes[split]}")
            for number, (image, (split, _)) in enumerate(zip(self.scenes, SCENES, strict=True))
        ]

    def pick(self, user: str, number: int) -> None:
        """Begin a conversation about a scene."""
        if not 0 <= number < len(self.scenes):
            raise DatasetError(f"there is no scene {number + 1}: pick one of the {len(self.scenes)}")
        self.sessions.put(user, Talk.about(self.grounder.look(self.scenes[number]), number))

    def upload(self, user: str, path: Path) -> str:
        """Begin a conversation about a file, and remove it; what is to be said about it."""
        image, (width, height) = open_upload(path)
        self.sessions.put(user, Talk.about(self.grounder.look(image), None))
        small = f"; it is looked at with {image.width}×{image.height}" if image.size != (width, height) else ""
        return f"{path.name}: {width}×{height} pixels{small}"

    def talk(self, user: str, stamp: str) -> Talk:
        """The user's talk, if it is the one that was seen when something was asked: what waits may be overtaken."""
        talk = self.sessions[user]
        if talk.seen is not None and talk.stamp != stamp:
            raise DatasetError("another conversation was begun before this one’s turn came: ask again")
        return talk

    def ask(
        self, talk: Talk, question: str, lam: float, earlier: bool, wanted: Callable[[], bool] = lambda: True
    ) -> Iterator[str]:
        """The answer as it grows; at the end its turn is in the talk. The LMM runs in a thread of its own.

        It stops at the next word once `wanted` is False, or nobody reads what this gives; then there is no turn.
        """
        question = " ".join(question.split())
        if talk.seen is None:
            raise DatasetError("there is no picture yet: pick a scene, or upload one")
        if len(question) > MAX_QUESTION:
            raise DatasetError(f"the question has {len(question)} characters: {MAX_QUESTION} are allowed")
        return self._answered(talk, question, lam, earlier, wanted)

    def _answered(
        self, talk: Talk, question: str, lam: float, earlier: bool, wanted: Callable[[], bool]
    ) -> Iterator[str]:
        pieces: SimpleQueue[str | None] = SimpleQueue()
        result: list[Answer | BaseException] = []
        left = Event()

        def hear(piece: str) -> None:
            if left.is_set() or not wanted():
                raise _Unwanted
            pieces.put(piece)

        def speak() -> None:
            try:
                most = self.about.max_answer_tokens
                result.append(talk.answer(self.grounder, question, most=most, earlier=earlier, on_text=hear))
            except _Unwanted:
                pass
            except BaseException as error:  # raised again below
                result.append(error)
            pieces.put(None)

        Thread(target=speak, daemon=True, name="answer").start()
        answer, text = None, ""
        try:
            while (piece := pieces.get()) is not None:
                text += piece
                if pieces.empty():  # what came meanwhile is shown at once
                    yield text
            answer = result.pop() if result else None
            if isinstance(answer, BaseException):
                raise answer
            if answer is None or not wanted():
                return
            yield answer.text
            talk.add(self._grounded(answer, lam), answer)
            self.sessions.fit()
        finally:
            left.set()
            if isinstance(answer, Answer):
                answer.past = None  # a GPU's memory
            result.clear()  # an error holds its frames, these hold `result`: all their tensors would wait for the
            del answer  # garbage collector

    def _grounded(self, answer: Answer, lam: float) -> Grounding:
        if self.selects:
            return self.grounder.ground(answer, lam=lam)
        return unmarked(answer, self.grounder.head.shape.channels)

    def ground_words(self, talk: Talk, phrase: str) -> None:
        """Ground words that the user gives, as a turn of its own that the LMM does not see."""
        if talk.seen is None:
            raise DatasetError("there is no picture yet: pick a scene, or upload one")
        if len(phrase) > MAX_QUESTION:
            raise DatasetError(f"the words have {len(phrase)} characters: {MAX_QUESTION} are allowed")
        talk.add(self.grounder.segment(talk.seen, phrase))
        self.sessions.fit()

    def chat(self, talk: Talk, live: str = "") -> str:
        turns = {number: turn.grounding for number, turn in talk.turns.items()}
        return page_view.chat(turns, live, dropped=talk.count > len(turns))

    def stage(self, talk: Talk, view: View) -> str:
        found = talk.focused()
        caption = "What you ask about."
        if found is not None:
            many = sum(phrase.area > 0 for phrase in (found if view.refined else found.unrefined()).phrases)
            masks = "1 mask" if many == 1 else f"{many or 'no'} masks"
            caption = f"{masks}, {'refined' if view.refined else 'before refinement'}. Point at a word."
        return page_view.stage(talk.photo, talk.layers(view), caption)

    def attention(self, talk: Talk, view: View) -> str:
        if talk.focus is None or talk.focus[0] not in talk.turns:
            return page_view.attention(talk.photo, None, 0, view, self.maps, {})
        turn = talk.turns[talk.focus[0]]
        grounding, word = turn.grounding, min(talk.focus[1], len(turn.grounding.words) - 1)
        alone: AbstractContextManager[object] = self._clustering if view.kind == "kmeans" else nullcontext()
        with alone:
            return page_view.attention(talk.photo, grounding, word, view, self.maps, turn.clusters)

    def saved(self, talk: Talk, kind: str, refined: bool) -> str:
        """The last pointed-at turn as a data: address. kind: json or png."""
        grounding = talk.focused()
        if grounding is None:
            raise DatasetError("there is nothing to download yet: ask something first")
        if kind == "png":
            return page_pictures.address_of(page_pictures.overlay_png(grounding, refined), "image/png")
        text = json.dumps(grounding.record(), ensure_ascii=False, indent=1)
        return page_pictures.address_of(text.encode("utf-8"), "application/json")


def open_upload(path: Path) -> tuple[Image.Image, tuple[int, int]]:
    """An uploaded file as RGB, upright, no side longer than `WORKING_SIDE`; and (width, height) before.

    The file is removed. DatasetError: in one line, without the server's paths.
    """
    try:
        if not path.is_file():
            raise DatasetError(f"{path.name} is not there any more: upload it again")
        if path.stat().st_size == 0:
            raise DatasetError(f"{path.name} is empty: give a JPEG, PNG or WebP file")
        with opened_picture(path) as opened:
            width, height = opened.size
            if (pixels := width * height) > MAX_UPLOAD_PIXELS:
                raise BrokenPicture(f"has {pixels:,} pixels, {MAX_UPLOAD_PIXELS:,} are allowed")
            turned = opened.getexif().get(ORIENTATION) in range(5, 9)
            image = open_photo(_shrunk(opened))  # first, for each step to RGB is one more copy of all pixels
        image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
        return image, ((height, width) if turned else (width, height))
    except BrokenPicture as fault:
        cure = "give a smaller one" if "pixels" in str(fault) else "give a JPEG, PNG or WebP file that opens elsewhere"
        raise DatasetError(f"{path.name} {fault}: {cure}") from None
    finally:
        path.unlink(missing_ok=True)


def _shrunk(opened: Image.Image) -> Image.Image:
    """The picture with no side longer than `WORKING_SIDE`, if its mode can be averaged as it is."""
    if max(opened.size) <= WORKING_SIDE:
        return opened
    if opened.mode in ("P", "PA") or "transparency" in opened.info:
        opened = opened.convert("RGBA")
    if opened.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        opened.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return opened


def said(error: BaseException) -> str:
    """What a user is told of an error; the log has the rest."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):  # torch's CPU
        log.error("the page has no memory left: %s", error)
        return FULL
    log.error("the page met an error", exc_info=error)
    return "that did not work, and it is this program’s fault: its log says more. Try again, or another picture."
