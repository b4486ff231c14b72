"""The page in headless Chromium, where it is installed, on the embedded models: served as `demo-page` serves it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.masks import decode
from stages.ground.grounder import Grounder
from stages.ground.page_actions import QUESTIONS, About, Page

pytest.importorskip("gradio", reason="pip install 'frozen-lmm-grounding[page]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Site:
    """The page, its server's address and folder, a browser, and what the browser asked for."""

    page: Page
    address: str
    folder: Path
    browser: Any
    asked: list[str] = field(default_factory=list)

    def tab(self, **options: Any) -> Any:
        """A new user, who sees the first scene."""
        context = self.browser.new_context(**({"viewport": {"width": 1400, "height": 950}} | options))
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("request", lambda request: self.asked.append(request.url))
        tab.goto(self.address)
        tab.wait_for_selector("#gw-stage .gw-photo")
        return tab

    @property
    def bytes_kept(self) -> int:
        """Of all files in the server's folder; Gradio leaves the names of uploads, empty, until it ends."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from stages.ground.page import open_page

    page = Page(Grounder.load(), About(max_answer_tokens=80))
    with sync_api.sync_playwright() as playwright, open_page(page) as address:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield Site(page, address, Path(os.environ["GRADIO_TEMP_DIR"]), browser)
        browser.close()


def ask(tab: Any, question: str) -> None:
    """Ask, and wait until the answer's words can be pointed at."""
    before = tab.locator(".gw-said").count()
    tab.fill("#gw-question textarea", question)
    tab.click("#gw-send")
    tab.wait_for_function(
        "n => document.querySelectorAll('.gw-said').length > n && !document.querySelector('.gw-pending')",
        arg=before,
    )


def picture(tab: Any, selector: str) -> np.ndarray:
    """The pixels of a picture of the page."""
    address = tab.locator(selector).first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def attention(tab: Any, kind: str = "gw-heat") -> str:
    return str(tab.locator(f"#gw-attention .{kind}").get_attribute("src"))


def changes(tab: Any, selector: str, before: str) -> str:
    """The address of a picture, once it is another than `before`."""
    tab.wait_for_function(
        "([s, b]) => { const e = document.querySelector(s); return e && e.src !== b }", arg=[selector, before]
    )
    return str(tab.locator(selector).first.get_attribute("src"))


def number(tab: Any, name: str, value: float) -> None:
    """Type a slider's number."""
    tab.fill(f"#{name} input[type=number]", str(value))
    tab.press(f"#{name} input[type=number]", "Enter")


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


def message(tab: Any, part: str) -> str:
    tab.wait_for_function(
        "part => (document.querySelector('.gw-message') || {innerText: ''}).innerText.includes(part)", arg=part
    )
    return str(tab.inner_text(".gw-message"))


def test_a_question_is_answered_and_its_words_point_at_masks(site: Site) -> None:
    tab = site.tab()
    tab.click(f"text={QUESTIONS[0]}")
    tab.wait_for_selector(".gw-said mark")
    shown = tab.locator(".gw-fill.gw-on")
    assert shown.count() == tab.locator(".gw-fill").count() > 1
    layer = picture(tab, ".gw-fill")
    assert layer.shape[2] == 4 and 0.001 < (layer[..., 3] > 0).mean() < 0.9
    tab.locator("mark .gw-word").nth(1).hover()
    tab.wait_for_selector(".gw-spot.gw-on")
    assert (shown.count(), tab.locator(".gw-spot.gw-on").count()) == (0, 1)
    label = tab.locator("mark .gw-word").nth(1).get_attribute("data-label")
    assert tab.inner_text("#gw-stage figcaption") == label and "score 0." in label
    tab.wait_for_selector("#gw-attention .gw-heat")
    first = attention(tab)
    tab.locator("mark .gw-word").last.focus()  # with the keyboard
    assert changes(tab, "#gw-attention .gw-heat", first) != first
    assert tab.locator(".gw-spot.gw-on").get_attribute("data-phrase") != "0"
    tab.mouse.move(2, 2)
    assert [each for each in site.asked if not each.startswith((site.address, "data:", "blob:"))] == []
    tab.context.close()


def test_views_lambda_and_the_refiner_change_what_is_seen(site: Site) -> None:
    tab = site.tab()
    ask(tab, QUESTIONS[0])
    mean = attention(tab)
    tab.click("#gw-kind >> text=one map")
    one = changes(tab, "#gw-attention .gw-heat", mean)
    number(tab, "gw-layer", 5)
    other = changes(tab, "#gw-attention .gw-heat", one)
    number(tab, "gw-map", 4)
    changes(tab, "#gw-attention .gw-heat", other)
    assert "layer 5 of 5, head 4 of 6" in tab.inner_text("#gw-attention figcaption")
    tab.click("#gw-kind >> text=K-means")
    four = changes(tab, "#gw-attention .gw-cells", "")
    number(tab, "gw-k", 8)
    changes(tab, "#gw-attention .gw-cells", four)
    assert len(np.unique(picture(tab, "#gw-attention .gw-cells").reshape(-1, 3), axis=0)) == 8
    refined = str(tab.locator(".gw-fill").first.get_attribute("src"))
    tab.click("#gw-refined input")
    changes(tab, ".gw-fill", refined)
    marked = tab.locator("mark .gw-word").count()
    text = tab.inner_text(".gw-said")
    number(tab, "gw-lam", 0.9)
    tab.wait_for_function("n => document.querySelectorAll('mark .gw-word').length < n", arg=marked)
    assert tab.inner_text(".gw-said") == text
    tab.context.close()


def test_turns_given_words_and_downloads(site: Site) -> None:
    tab = site.tab()
    ask(tab, QUESTIONS[0])
    ask(tab, QUESTIONS[1])
    (talk,) = [talk for _, talk in site.page.sessions._talks.values() if talk.count == 2]
    assert talk.last is not None and [question for question, _ in talk.last.turns] == [QUESTIONS[0]]
    tab.locator(".gw-said").first.locator("mark .gw-word").first.hover()  # of the turn before
    tab.wait_for_selector('.gw-spot.gw-on[data-turn="0"]')
    tab.fill("#gw-words input, #gw-words textarea", "the ring")
    tab.click("#gw-find")
    tab.wait_for_function("document.querySelectorAll('.gw-said').length === 3")
    tab.mouse.move(2, 2)
    tab.wait_for_selector('.gw-fill.gw-on[data-turn="2"]')
    with tab.expect_download() as got:
        tab.click("#gw-json")
    record = json.loads(Path(got.value.path()).read_text(encoding="utf-8"))
    assert got.value.suggested_filename == "grounding.json" and record["text"] == "the ring"
    assert np.array_equal(decode(record["phrases"][0]["mask"]), talk.turns[2].grounding.phrases[0].mask)
    with tab.expect_download() as got:
        tab.click("#gw-png")
    with Image.open(got.value.path()) as saved:
        assert got.value.suggested_filename == "grounding.png" and saved.format == "PNG" and saved.width > 600
    tab.click("#gw-again")
    tab.wait_for_selector(".gw-empty")
    assert tab.locator(".gw-fill").count() == 0
    tab.context.close()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_bad_uploads_are_told_and_the_server_lives(site: Site, tmp_path: Path) -> None:
    tab = site.tab()
    good = tmp_path / "upright & <b>good<b>.png"
    Image.fromarray(np.full((60, 90, 3), (200, 30, 30), np.uint8)).save(good)
    cut = tmp_path / "cut.jpg"
    Image.effect_noise((200, 200), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 60_001))
    bad = {"text.png": (b"not a picture", "can not be decoded"), "empty.png": (b"", "is empty")}
    bad |= {"bomb.png": (bomb, "more than the 134217728 pixels"), "cut.jpg": (cut.read_bytes(), "can not be decoded")}
    for name, (content, said) in bad.items():
        (tmp_path / name).write_bytes(content)
        tab.set_input_files("#gw-upload input[type=file], input[type=file]", tmp_path / name)
        told = message(tab, name)
        assert said in told and str(site.folder) not in told
    tab.set_input_files("#gw-upload input[type=file], input[type=file]", good)
    assert "90×60 pixels" in message(tab, "90×60")
    assert tab.locator(".gw-message b").count() == 0
    assert tuple(picture(tab, ".gw-photo").shape[:2]) == (427, 640)
    ask(tab, "What is in the picture?")
    assert site.bytes_kept == 0
    tab.context.close()


def test_nothing_that_is_written_is_run(site: Site) -> None:
    tab = site.tab()
    hostile = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script> ${1+1} {{value}} `"
    ask(tab, hostile)
    assert tab.inner_text(".gw-asked") == hostile
    tab.fill("#gw-words input, #gw-words textarea", hostile)
    tab.click("#gw-find")
    tab.wait_for_function("document.querySelectorAll('.gw-said').length === 2")
    assert " ".join(tab.locator(".gw-said").last.inner_text().split()) == hostile
    assert tab.title() == "Ground a frozen LMM"
    assert tab.locator(".gw-said img, .gw-said script, .gw-asked img").count() == 0
    tab.fill("#gw-question textarea", "why " * 400)
    tab.click("#gw-send")
    assert "1000 are allowed" in message(tab, "characters")
    tab.context.close()


def test_two_users_at_once_and_no_one_afterwards(site: Site) -> None:
    tabs = [site.tab(), site.tab()]
    tabs[1].click('.gw-scene[data-scene="3"]')
    tabs[1].wait_for_selector('.gw-scene[data-scene="3"][aria-pressed="true"]')
    for tab in tabs:
        tab.click(f"text={QUESTIONS[0]}")
    for tab in tabs:
        tab.wait_for_selector(".gw-said mark")
    said = [tab.inner_text(".gw-said") for tab in tabs]
    grounder = site.page.grounder
    alone = [grounder.answer(site.page.scenes[n], QUESTIONS[0], max_new_tokens=80).text for n in (0, 3)]
    assert [text.split() for text in said] == [text.split() for text in alone]
    for tab in tabs:
        tab.context.close()
    wait_until(lambda: len(site.page.sessions) == 0)


def test_a_question_that_waits_is_of_its_picture_and_users_may_go_on_or_leave(site: Site) -> None:
    answering, waiting, leaving = tabs = [site.tab() for _ in range(3)]
    with site.page.grounder._lock:  # nothing is answered before all of this has happened
        for tab in (answering, waiting, leaving):
            tab.fill("#gw-question textarea", QUESTIONS[1])
            tab.click("#gw-send")
            answering.wait_for_selector(".gw-pending")
        answering.fill("#gw-question textarea", "typed meanwhile")
        waiting.click('.gw-scene[data-scene="3"]')
        waiting.wait_for_selector('.gw-scene[data-scene="3"][aria-pressed="true"]')
        leaving.context.close()
        wait_until(lambda: len(site.page.sessions) == 2)
    assert "ask again" in message(waiting, "another conversation")
    assert waiting.locator(".gw-said").count() == 0
    assert waiting.input_value("#gw-question textarea") == QUESTIONS[1]
    answering.wait_for_selector(".gw-said mark")
    assert answering.input_value("#gw-question textarea") == "typed meanwhile"
    ask(waiting, QUESTIONS[1])
    assert len(site.page.sessions) == 2 and waiting.input_value("#gw-question textarea") == ""
    for tab in tabs[:2]:
        tab.context.close()


def test_a_tab_that_is_closed_stops_its_answer(site: Site) -> None:
    tab = site.tab()
    with site.page.grounder._lock:
        tab.click(f"text={QUESTIONS[0]}")
        tab.wait_for_selector(".gw-pending")
        (talk,) = [talk for _, talk in site.page.sessions._talks.values()]
        tab.context.close()
        wait_until(lambda: len(site.page.sessions) == 0)
    wait_until(lambda: all(thread.name != "answer" for thread in threading.enumerate()))
    assert talk.turns == {} and talk.last is None and len(site.page.sessions) == 0


def test_a_narrow_window_and_touch(site: Site) -> None:
    tab = site.tab(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    ask(tab, QUESTIONS[0])
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    tab.locator("mark .gw-word").first.tap()
    tab.wait_for_selector(".gw-spot.gw-on")
    tab.context.close()
