"""The page without a browser, on the embedded models: talks, answers that fail or nobody waits for, its port."""

from __future__ import annotations

import base64
import gc
import io
import re
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from manifests.errors import DatasetError, PipelineError
from manifests.scenes.world import make_scene
from stages.ground import page_actions
from stages.ground.grounder import Grounder
from stages.ground.page_actions import About, Page
from stages.ground.page_view import View


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(Grounder.load(), About(max_answer_tokens=48))


def test_a_talk_with_the_embedded_models(page: Page) -> None:
    page.pick("user", 0)
    talk = page.sessions["user"]
    pieces = list(page.ask(talk, "What is in the picture?", 0.3, earlier=True))
    alone = page.grounder.answer(
        make_scene(*page_actions.SCENES[0]).image, "What is in the picture?", max_new_tokens=48
    )
    assert pieces[-1] == alone.text and len(pieces) > 1
    before = talk.turns[0].grounding
    assert before.text == alone.text and before.phrases
    calls = []
    page.grounder.lmm.capture.run, run = lambda *_, **__: calls.append(1), page.grounder.lmm.capture.run  # type: ignore
    try:
        talk.choose(page.grounder, 0.9)
    finally:
        page.grounder.lmm.capture.run = run  # type: ignore[method-assign]
    after = talk.turns[0].grounding
    assert calls == [] and sum(len(p.words) for p in after.phrases) < sum(len(p.words) for p in before.phrases)
    assert after.seconds["capture"] == before.seconds["capture"] > 0
    page.ground_words(talk, "the ring")
    assert talk.turns[1].grounding.phrases[0].text == "the ring" and talk.focus == (1, 0)
    list(page.ask(talk, "how many rings are there ?", 0.3, earlier=False))
    assert talk.last is not None and talk.last.turns == ()
    with Image.open(io.BytesIO(base64.b64decode(page.saved(talk, "png", True).partition(",")[2]))) as saved:
        assert saved.format == "PNG"
    for question, fault in (("", "empty"), ("x" * 1001, "1000 are allowed")):
        with pytest.raises(DatasetError, match=fault):
            list(page.ask(talk, question, 0.3, earlier=True))
    with pytest.raises(DatasetError, match="no picture yet"):
        list(page.ask(page.sessions["other"], "What?", 0.3, earlier=True))


class Pinned:
    """What a frame holds, that has to go with it."""


def test_an_answer_that_fails_leaves_nothing(page: Page, monkeypatch: Any) -> None:
    """No turn, no keys and values, and no cycle that waits for the garbage collector."""
    page.pick("user", 0)
    talk, pins, answers = page.sessions["user"], [], []

    def fail(answer: Any, **_: Any) -> None:
        pinned = Pinned()
        pins.append(weakref.ref(pinned))
        answers.append(answer)
        raise KeyError("made up")

    def ask() -> None:
        try:
            list(page.ask(talk, "What is in the picture?", 0.3, earlier=True))
        except KeyError:
            return
        pytest.fail("it did not fail")

    gc.collect()
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(page.grounder, "ground", fail)
            ask()
        assert answers[0].past is None
        with monkeypatch.context() as patch:
            patch.setattr(talk.__class__, "answer", lambda *_, **__: fail(None))
            ask()
        assert [pin() for pin in pins] == [None, None]
    finally:
        gc.enable()
    assert talk.turns == {} and talk.last is None


@pytest.mark.parametrize("how", ["left", "closed", "closed at the end"])
def test_an_answer_that_nobody_waits_for_stops(how: str, page: Page) -> None:
    page.pick("user", 0)
    talk, threads = page.sessions["user"], threading.active_count()
    told: list[bool] = []

    def wanted() -> bool:
        told.append(page.sessions["user"] is talk)
        return told[-1]

    pieces = page.ask(talk, "What is in the picture?", 0.3, True, wanted)
    if how == "closed at the end":
        whole = page.grounder.answer(talk.seen, "What is in the picture?", max_new_tokens=48).text  # type: ignore
        assert whole in pieces
    else:
        next(pieces)
    if how == "left":
        page.sessions.forget("user")
        list(pieces)
        assert told.count(False) == 1  # no word was said after it
    else:
        pieces.close()  # type: ignore[attr-defined]
    for _ in range(500):
        if threading.active_count() <= threads:
            break
        time.sleep(0.01)
    assert threading.active_count() <= threads and talk.turns == {} and talk.last is None
    assert len(page.sessions) == (how != "left")


def test_attention_goes_with_its_turn(page: Page) -> None:
    page.pick("user", 0)
    talk = page.sessions["user"]
    list(page.ask(talk, "What is in the picture?", 0.3, earlier=True))
    assert talk.last is not None and talk.last.priors is not None and talk.last.past is None
    captured = talk.last.priors
    assert talk.turns[0].nbytes > captured.attention.nbytes + captured.scaled_hidden.nbytes
    talk.fade(0)
    assert talk.last.priors is None and talk.turns[0].nbytes == 0 and talk.turns[0].grounding.phrases
    list(page.ask(talk, "how many rings are there ?", 0.3, earlier=True))
    assert [question for question, _ in talk.last.turns] == ["What is in the picture?"]


def test_what_was_asked_about_another_picture_is_not_answered(page: Page) -> None:
    page.pick("user", 0)
    stamp = page.sessions["user"].stamp
    assert page.talk("user", stamp) is page.sessions["user"]
    page.pick("user", 3)
    with pytest.raises(DatasetError, match="ask again"):
        page.talk("user", stamp)
    assert page.talk("nobody", stamp).seen is None


def test_a_port_that_is_taken_is_told(page: Page, monkeypatch: Any) -> None:
    pytest.importorskip("gradio", reason="pip install 'frozen-lmm-grounding[page]'")
    from stages.ground.page import open_page

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PipelineError, match=re.escape(f"127.0.0.1:{port}, it is taken")),
            open_page(page, port=port),
        ):
            pass
    with pytest.raises(PipelineError, match=re.escape("203.0.113.9")), open_page(page, "203.0.113.9"):
        pass
    monkeypatch.setattr("gradio.Blocks.launch", lambda *_, **__: Path("/nowhere/at/all").read_text())
    with pytest.raises(FileNotFoundError), open_page(page):
        pass


def test_a_head_that_selects_no_words_still_talks(page: Page, monkeypatch: Any) -> None:
    monkeypatch.setattr(page, "selects", False)
    page.pick("user", 1)
    talk = page.sessions["user"]
    list(page.ask(talk, "What is in the picture?", 0.3, earlier=True))
    assert talk.turns[0].grounding.phrases == () and "<mark" not in page.chat(talk)
    assert "gw-said" in page.chat(talk) and "nothing is marked" in page.attention(talk, View())
