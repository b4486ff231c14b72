"""The web page: pick or upload a picture, talk about it, and see what the words point at (Gradio, extra `page`).

    with open_page(Page(Grounder.load(), About())) as address:
        input(address)

This file is the wiring; what happens is in page_actions.py, what is shown in page_view.py, what is remembered in
page_session.py. The page asks nothing of another machine, keeps nothing on the disk (uploads are read and removed), and
forgets a user who leaves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import gradio as gr

from stages.evaluate.scoring import LAMBDA
from stages.ground import page_view
from stages.ground.page_actions import QUESTIONS, Page, said
from stages.ground.page_server import environment, free_port, taken, theme
from stages.ground.page_session import SESSIONS, Talk
from stages.ground.page_view import View

HERE: Final = Path(__file__).parent
WAITING: Final = 32
"""Questions that may wait for their turn; more are refused."""
MAX_UPLOAD: Final = "20mb"
PICK: Final = """element.addEventListener("click", event => {
  const scene = event.target.closest(".gw-scene")
  if (scene) trigger("pick", { scene: Number(scene.dataset.scene) })
})"""
SAVE: Final = """(address) => {
  if (!address) return address
  const link = document.createElement("a")
  link.href = address
  link.download = address.startsWith("data:image") ? "grounding.png" : "grounding.json"
  link.click()
  return ""
}"""
VIEWS: Final = (("mean of all maps", "mean"), ("one map", "map"), ("K-means", "kmeans"))
NO_API: Final[dict[str, Any]] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: Final[dict[str, Any]] = {**NO_API, "queue": False, "trigger_mode": "always_last"}
ALONE: Final[dict[str, Any]] = {**NO_API, "concurrency_id": "upload", "concurrency_limit": 1}
IN_TURN: Final[dict[str, Any]] = {**NO_API, "concurrency_id": "lmm", "concurrency_limit": 1}


@contextmanager
def open_page(page: Page, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The page's address while it is served; port 0: any that is free. PipelineError where it can not be served there.

    What Gradio writes is in a temporary folder, which is removed in the end.
    """
    with tempfile.TemporaryDirectory(prefix="demo-page-") as folder, environment(folder):
        blocks = build(page)
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=free_port(host, port),
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                footer_links=[],
                run_history=False,
                allowed_paths=[],
                max_file_size=MAX_UPLOAD,
                state_session_capacity=4 * SESSIONS,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=(HERE / "page.css").read_text(encoding="utf-8"),
                app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
            )
        except OSError as error:
            if "empty port" not in str(error):  # Gradio's words where another was quicker
                raise
            raise taken(host, port) from None
        try:
            with page.sessions.swept():
                yield str(address)
        finally:
            blocks.close(verbose=False)


def build(page: Page) -> gr.Blocks:
    """All of the page: its parts and what they do."""
    with gr.Blocks(title="Ground a frozen LMM", analytics_enabled=False, delete_cache=(60, 300)) as blocks:
        parts = _Parts(page)
        _Wires(page, parts).connect(blocks)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


class _Parts:
    """The layout."""

    def __init__(self, page: Page):
        parameters = sum(weight.numel() for weight in page.grounder.lmm.model.parameters())
        about = page_view.escaped(page.about.sentence(parameters))
        gr.HTML(f"<h1>What do a frozen LMM’s words point at?</h1><p>{about}</p>", elem_id="gw-head")
        self.message = gr.HTML("", elem_id="gw-message")
        with gr.Row(elem_id="gw-both"):
            with gr.Column(scale=7, min_width=360):
                self._look(page)
            with gr.Column(scale=5, min_width=360):
                self._talk(page)
        self._controls(page)
        self.looks: list[Any] = [self.kind, self.layer, self.head, self.k, self.refined]
        self.stamp = gr.Textbox(visible="hidden", elem_id="gw-stamp")  # which talk the browser shows: `Talk.stamp`
        self.shown = [self.message, self.scenes, self.stage, self.attention, self.chat, self.seconds, self.stamp]

    def _look(self, page: Page) -> None:
        with gr.Row(elem_id="gw-pick"):
            self.scenes = gr.HTML(page_view.scenes(page.labels, None), js_on_load=PICK, elem_id="gw-scenes")
            self.upload = gr.UploadButton("Upload a picture", type="filepath", size="sm", elem_id="gw-upload", scale=0)
        with gr.Row(elem_id="gw-pictures"):
            self.stage = gr.HTML(page_view.stage("", {}, ""), elem_id="gw-stage", min_width=260)
            self.attention = gr.HTML("", elem_id="gw-attention", min_width=260)
        self.seconds = gr.HTML("", elem_id="gw-times")

    def _controls(self, page: Page) -> None:
        with gr.Row(elem_id="gw-controls"):
            self.kind = gr.Radio(VIEWS, value="mean", label="Attention", elem_id="gw-kind", min_width=300, scale=3)
            self.layer = self._number("Layer", page.maps.layers, (page.maps.layers + 1) // 2, "gw-layer")
            self.head = self._number("Head", page.maps.heads, 1, "gw-map")
            self.k = self._number("Clusters", 12, 4, "gw-k", low=2)
            self.lam = gr.Slider(
                0.02, 0.98, LAMBDA, step=0.02, label="Mark words that score more than λ", elem_id="gw-lam",
                interactive=page.selects, min_width=240, scale=3,
            )  # fmt: skip
            self.refined = gr.Checkbox(
                True, label="Refine masks", info="with SAM’s decoder", elem_id="gw-refined", min_width=160, scale=2,
                interactive=page.grounder.sam is not None,
            )  # fmt: skip
        with gr.Row(elem_id="gw-save"):
            self.json = gr.Button("Download JSON", size="sm", elem_id="gw-json")
            self.png = gr.Button("Download PNG", size="sm", elem_id="gw-png")
        self.saved = gr.Textbox(visible="hidden", elem_id="gw-saved")

    @staticmethod
    def _number(label: str, high: int, value: int, name: str, low: int = 1) -> gr.Slider:
        return gr.Slider(
            low, max(high, low + 1), value, step=1, label=label, visible=False, elem_id=name, min_width=140, scale=2
        )

    def _talk(self, page: Page) -> None:
        script = (HERE / "page.js").read_text(encoding="utf-8")
        with gr.Group(elem_id="gw-chat-box"):
            self.chat = gr.HTML(page_view.chat({}), js_on_load=script, elem_id="gw-talk", padding=True)
        with gr.Row(elem_id="gw-ask"):
            self.question = gr.Textbox(
                placeholder="Ask about the picture", show_label=False, container=False, scale=5, elem_id="gw-question",
                max_lines=4,
            )  # fmt: skip
            self.send = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="gw-send")
        with gr.Row(elem_id="gw-examples"):
            self.examples = [gr.Button(text, size="sm", min_width=60) for text in QUESTIONS]
        with gr.Row(elem_id="gw-turns"):
            self.earlier = gr.Checkbox(True, label="The LMM sees earlier turns", elem_id="gw-earlier")
            self.again = gr.Button("New conversation", size="sm", elem_id="gw-again")
        with gr.Row(elem_id="gw-given"):
            self.words = gr.Textbox(
                placeholder="Or name something: the red ring", show_label=False, container=False, scale=5,
                elem_id="gw-words", max_lines=1,
            )  # fmt: skip
            self.find = gr.Button("Ground", scale=1, min_width=80, elem_id="gw-find")


class _Wires:
    """What happens on an event: the methods are Gradio's listeners. look: the values of `_Parts.looks`."""

    def __init__(self, page: Page, parts: _Parts):
        self.page, self.parts = page, parts

    def connect(self, blocks: gr.Blocks) -> None:
        """Say which event calls which method."""
        parts, looks, shown = self.parts, self.parts.looks, self.parts.shown
        blocks.load(self.start, looks, shown, **NO_API)
        blocks.unload(self.leave)
        parts.scenes.pick(self.pick, looks, shown, **NO_API)
        parts.upload.upload(self.upload, [parts.upload, *looks], [*shown, parts.upload], **ALONE)
        parts.again.click(self.again, looks, shown, **NO_API)
        parts.chat.point(self.point, looks, parts.attention, **AT_ONCE)
        for each in looks:
            each.change(self.see, looks, [parts.stage, parts.attention, parts.layer, parts.head, parts.k], **AT_ONCE)
        parts.lam.change(self.choose, [parts.lam, *looks], shown, **IN_TURN, trigger_mode="always_last")
        given = [parts.find.click, parts.words.submit]
        gr.on(given, self.ground, [parts.words, parts.stamp, *looks], shown, **IN_TURN)
        asked, after = [parts.stamp, parts.lam, parts.earlier, *looks], [*shown, parts.question]
        gr.on([parts.send.click, parts.question.submit], self.ask, [parts.question, *asked], after, **IN_TURN)
        for example in parts.examples:
            example.click(self.ask_example, [example, *asked], shown, **IN_TURN)
        for button, save in ((parts.json, self.save_json), (parts.png, self.save_png)):
            saved = button.click(save, parts.refined, [parts.saved, parts.message], **NO_API)
            saved.then(None, parts.saved, parts.saved, js=SAVE)

    def start(self, request: gr.Request, *look: Any) -> dict[Any, Any]:
        """A new tab: the first scene."""
        return self._done(request, look, lambda: self.page.pick(_user(request), 0))

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.page.sessions.forget(_user(request))

    def pick(self, request: gr.Request, event: gr.EventData, *look: Any) -> dict[Any, Any]:
        """A scene was clicked."""
        return self._done(request, look, lambda: self.page.pick(_user(request), int(event._data["scene"])))

    def upload(self, request: gr.Request, path: str | None, *look: Any) -> dict[Any, Any]:
        """A file has arrived."""
        done = self._done(request, look, lambda: self.page.upload(_user(request), Path(path)) if path else None)
        return done | {self.parts.upload: None}

    def again(self, request: gr.Request, *look: Any) -> dict[Any, Any]:
        """A new conversation about the same picture."""
        self.page.sessions.put(_user(request), self._talk(request).again())
        return self._all(request, look)

    def ground(self, request: gr.Request, words: str, stamp: str, *look: Any) -> dict[Any, Any]:
        """Given words."""
        user = _user(request)
        return self._done(request, look, lambda: self.page.ground_words(self.page.talk(user, stamp), words))

    def choose(self, request: gr.Request, lam: float, *look: Any) -> dict[Any, Any]:
        """Another λ."""
        return self._done(request, look, lambda: self._talk(request).choose(self.page.grounder, lam))

    def ask(
        self, request: gr.Request, question: str, stamp: str, lam: float, earlier: bool, *look: Any
    ) -> Iterator[dict[Any, Any]]:
        """A question, about the talk that was seen when it was asked: the answer as it grows, then its masks.

        The box is emptied once the question is taken, not later: the next one may be in it.
        """
        parts, page, note = self.parts, self.page, ""
        try:
            talk = page.talk(_user(request), stamp)
            pieces = page.ask(talk, question, lam, earlier, lambda: self._talk(request) is talk)
            yield {parts.message: "", parts.question: "", parts.chat: page.chat(talk, page_view.pending(question, ""))}
            for text in pieces:
                yield {parts.chat: page.chat(talk, page_view.pending(question, text))}
            if (now := self._talk(request)) is not talk:  # what the user has begun meanwhile is shown already
                yield {parts.chat: page.chat(now)}  # but the last words may have come later
                return
        except Exception as error:
            note = page_view.message(said(error))
        yield self._all(request, look, note)

    def ask_example(
        self, request: gr.Request, question: str, stamp: str, lam: float, earlier: bool, *look: Any
    ) -> Iterator[dict[Any, Any]]:
        """The same, but what is in the box stays."""
        for shown in self.ask(request, question, stamp, lam, earlier, *look):
            yield {part: value for part, value in shown.items() if part is not self.parts.question}

    def see(self, request: gr.Request, *look: Any) -> dict[Any, Any]:
        """Another view of the same."""
        parts, talk, view = self.parts, self._talk(request), _view(look)
        kinds = {parts.layer: "map", parts.head: "map", parts.k: "kmeans"}
        sliders = {slider: gr.update(visible=view.kind == kind) for slider, kind in kinds.items()}
        return sliders | {parts.stage: self.page.stage(talk, view), parts.attention: self.page.attention(talk, view)}

    def point(self, request: gr.Request, event: gr.EventData, *look: Any) -> str:
        """A word was pointed at."""
        talk = self._talk(request)
        talk.point(int(event._data["turn"]), int(event._data["word"]))
        return self.page.attention(talk, _view(look))

    def save_json(self, request: gr.Request, refined: bool) -> dict[Any, Any]:
        """The address of the file."""
        return self._saved(request, "json", refined)

    def save_png(self, request: gr.Request, refined: bool) -> dict[Any, Any]:
        """The address of the file."""
        return self._saved(request, "png", refined)

    def _saved(self, request: gr.Request, kind: str, refined: bool) -> dict[Any, Any]:
        parts = self.parts
        try:
            return {parts.saved: self.page.saved(self._talk(request), kind, refined), parts.message: ""}
        except Exception as error:
            return {parts.saved: "", parts.message: page_view.message(said(error))}

    def _talk(self, request: gr.Request) -> Talk:
        return self.page.sessions[_user(request)]

    def _done(self, request: gr.Request, look: Sequence[Any], action: Callable[[], str | None]) -> dict[Any, Any]:
        """What there is to see after an action, or the line about what was wrong with it."""
        try:
            note = page_view.message(action() or "", fault=False)
        except Exception as error:
            note = page_view.message(said(error))
        return self._all(request, look, note)

    def _all(self, request: gr.Request, look: Sequence[Any], note: str = "") -> dict[Any, Any]:
        parts, talk, view = self.parts, self._talk(request), _view(look)
        return {
            parts.message: note,
            parts.scenes: page_view.scenes(self.page.labels, talk.scene),
            parts.stage: self.page.stage(talk, view),
            parts.attention: self.page.attention(talk, view),
            parts.chat: self.page.chat(talk),
            parts.seconds: page_view.seconds(talk.focused()),
            parts.stamp: talk.stamp,
        }


def _user(request: gr.Request) -> str:
    """Gradio's name of the tab."""
    return str(request.session_hash)


def _view(look: Sequence[Any]) -> View:
    kind, layer, head, k, refined = look
    return View(kind=kind, layer=int(layer), head=int(head), k=int(k), refined=bool(refined))
