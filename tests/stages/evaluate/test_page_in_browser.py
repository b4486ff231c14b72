"""The pages in headless Chromium, where it is installed: drawn, no wider than the window, nothing asked for elsewhere.

All that the browser asks for goes through a proxy that writes it down and answers with our pages, or with an error.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from stages.evaluate.compare import compare, write_comparison
from stages.evaluate.page import page
from tests.stages.evaluate.made_up import case, conversation, everything, keywords, res
from tests.stages.evaluate.test_page import hostile_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium")
SITE = "http://pages.invalid"
OWN = (".google.com", ".googleapis.com", ".gstatic.com")  # what the browser asks its maker for by itself
LOOK = """<pre id="found"></pre><script>onload = () => {
  const look = frame => {
    const inner = frame.contentDocument, root = inner.documentElement
    inner.querySelectorAll("details").forEach(each => each.open = true)
    const out = [...inner.querySelectorAll("body *")].filter(each => !each.closest(".wide, pre, svg") &&
      each.getBoundingClientRect().right > root.clientWidth + 1).map(each => each.tagName)
    const pictures = [...inner.images].filter(each => each.complete && each.naturalWidth > 0).length
    return { scroll: root.scrollWidth, height: root.scrollHeight, out, pictures, title: inner.title }
  }
  const found = [...document.querySelectorAll("iframe")].map(look)
  document.getElementById("found").textContent = JSON.stringify(found)
}</script>"""


@dataclass
class Browser:
    """pages: name -> HTML.  asked: all that was asked for but these, the frames and what a browser asks by itself."""

    port: int
    profile: Path
    pages: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, name: str, *options: str) -> str:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={self.profile}", f"--proxy-server=http://127.0.0.1:{self.port}"]
        done = subprocess.run(
            [*command, *options, f"{SITE}/{name}"],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"HOME": str(self.profile)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def look(self, frames: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """What a script finds on pages in frames: (name, width in pixels) each."""
        shown = "".join(f'<iframe src="/{name}" style="width:{width}px;border:0"></iframe>' for name, width in frames)
        self.pages["frames"] = f"<!doctype html>{shown}{LOOK}"
        text = self.run("frames", "--dump-dom")
        found = re.search(r'<pre id="found">(.+?)</pre>', text, re.DOTALL)
        assert found, text[-500:]
        return json.loads(html.unescape(found[1]))

    def screenshot(self, name: str, size: tuple[int, int], *options: str) -> np.ndarray:
        """int [height, width, 3]."""
        file = self.profile / "shot.png"
        self.run(name, f"--window-size={size[0]},{size[1]}", f"--screenshot={file}", *options)
        with Image.open(file) as picture:
            assert picture.size == size
            return np.asarray(picture.convert("RGB")).astype(int)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = found.pages.get(self.path.removeprefix(f"{SITE}/"))
            if body is None and not (urlparse(self.path).hostname or "").endswith(OWN):
                found.asked += [] if self.path == f"{SITE}/favicon.ico" else [self.path]
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def do_CONNECT(self) -> None:
            found.asked += [] if self.path.partition(":")[0].endswith(OWN) else [self.path]
            self.send_error(403)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    found = Browser(port=server.server_address[1], profile=tmp_path / "profile")
    Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def require_drawn(pixels: np.ndarray) -> None:
    """A page of text: mostly its background, with other colours here and there from top to bottom."""
    ink = np.abs(pixels - pixels[2, 2]).sum(-1) > 60
    assert 0.01 < ink.mean() < 0.6
    assert all(band.any() for band in np.array_split(ink, 8))


def report() -> str:
    return page(everything(), [case(), case("worst", "word" * 200)], [conversation()])


def comparison(folder: Path) -> str:
    other = replace(everything(lam=0.35, head="x" * 300), measures=[*res(base=0.9), *keywords()])
    names = ["one", "two", "a/rather/long/name/of/a/folder/with/results", "four"]
    runs = {name: everything() if k % 2 else other for k, name in enumerate(names)}
    return write_comparison(folder, compare(runs)).read_text(encoding="utf-8")


def test_wide_and_narrow_windows_and_hostile_text(browser: Browser, tmp_path: Path) -> None:
    smuggled = "<img src='http://evil.example/y.png'><script>document.title = 'it runs'</script></main>"
    browser.pages = {"report": report(), "comparison": comparison(tmp_path / "out")}
    browser.pages["hostile"] = hostile_page().replace("</main>", smuggled)  # what slips through meets the policy
    widths = [(name, width) for name in browser.pages for width in (1280, 420)]
    found = browser.look(widths)
    assert [(name, each["scroll"], each["out"]) for (name, _), each in zip(widths, found, strict=True)] == [
        (name, width, []) for name, width in widths
    ]
    assert all(each["height"] > 2000 for each in found)
    assert [each["pictures"] for each in found] == [12, 12, 0, 0, 6, 6]  # all that there are, but the smuggled one
    assert all(each["title"].startswith("Evaluation – <script>alert") for each in found[4:])
    assert browser.asked == []


@pytest.mark.parametrize(("scheme", "paper"), [("1", (255, 255, 255)), ("0", (20, 23, 28))])
def test_the_page_is_drawn_in_light_and_in_dark(browser: Browser, scheme: str, paper: tuple[int, int, int]) -> None:
    browser.pages = {"report": report()}
    pixels = browser.screenshot("report", (1280, 1600), f"--blink-settings=preferredColorScheme={scheme}")
    assert tuple(pixels[2, 2]) == paper
    require_drawn(pixels)


def test_the_checks_can_fail(browser: Browser) -> None:
    browser.pages = {"bad": "<!doctype html><img src='http://evil.example/y.png'><p style='width:900px'>wide</p>"}
    (found,) = browser.look([("bad", 420)])
    assert found["scroll"] > 420 and found["out"] == ["P"] and found["pictures"] == 0
    assert browser.asked == ["http://evil.example/y.png"]
    with pytest.raises(AssertionError):
        require_drawn(np.full((800, 600, 3), 255))
