"""The page without a browser: what is shown is a function of what was grounded; what is kept is bounded."""

from __future__ import annotations

import base64
import io
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifests.errors import DatasetError
from manifests.masks import encode
from stages.extract.images import Box
from stages.ground import page_actions, page_pictures, page_view
from stages.ground.page_actions import open_upload, said
from stages.ground.page_session import ATTENTIVE, SHOWN, Sessions, Talk
from stages.ground.page_view import Maps, View
from stages.ground.results import Grounding, Phrase, split_words

MAPS = Maps(layers=2, heads=2, of={(1, 1): [0], (1, 2): [1], (2, 2): [2]})


def mask(*box: int) -> np.ndarray:
    found = np.zeros((40, 60), bool)
    found[box[1] : box[3], box[0] : box[2]] = True
    return found


def grounding(text: str = "the ring, on grass", lam: float | None = 0.3) -> Grounding:
    """Two phrases (words 0-1 and 3) over 3 maps of 4 x 6 cells."""
    words = split_words(text, [0.9, 0.8, 0.1, 0.7])
    boxes = {(0, 1): (5, 5, 20, 20), (3,): (0, 10, 60, 40)}
    phrases = tuple(
        Phrase(
            text=text[words[group[0]].start : words[group[-1]].end],
            start=words[group[0]].start,
            end=words[group[-1]].end,
            words=group,
            score=0.8,
            rle=encode(mask(*box)),
            coarse_rle=encode(mask(box[0], box[1], box[2] - 4, box[3])),
        )
        for group, box in boxes.items()
    )
    maps = np.random.default_rng(0).random((4, 3, 6, 6)).astype(np.float16)
    return Grounding(
        image=Image.new("RGB", (60, 40), (90, 120, 150)),
        question="what?",
        text=text,
        finished=True,
        words=words,
        phrases=phrases,
        lam=lam,
        attention=maps,
        box=Box(top=8, left=0, height=32, width=48, size=48),
        seconds={"answer": 1.0, "capture": 0.25},
    )


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def source(html: str, kind: str) -> str:
    found = re.search(rf'<img class="{kind}[^>]*src="([^"]*)"', html)
    assert found, html[:500]
    return found[1]


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said += data


@given(st.text(alphabet="<>&\"'${}`\\ /abimgonerror=x\n", min_size=1))
def test_text_is_never_markup_nor_a_template(text: str) -> None:
    shown = Tags(page_view.pending(text, text))
    assert set(shown.tags) <= {"div", "span", "i"}
    assert not set("${}`") & set(page_view.escaped(text))
    assert Tags(page_view.message(text)).said == text


@given(st.lists(st.sampled_from(["a", "<b>", "ring,", "${x}", "\n"]), min_size=4, max_size=4))
def test_words_are_the_text_and_marks_are_the_phrases(parts: list[str]) -> None:
    text = " ".join(parts).strip() or "a"
    found = split_words(text)
    given = grounding()
    given = Grounding(
        **{name: getattr(given, name) for name in Grounding.__slots__} | {"text": text, "words": found, "phrases": ()}
    )
    assert Tags(page_view.words(0, given)).said.split() == text.split()


def test_marks_close_where_a_phrase_ends() -> None:
    html = page_view.words(7, grounding())
    marks = re.findall(r"<mark[^>]*>(.*?)</mark>", html)
    assert [Tags(each).said for each in marks] == ["the ring,", "grass"]
    assert re.findall(r'data-turn="7" data-word="(\d)" data-phrase="(-?\d)"', html) == [
        ("0", "0"), ("1", "0"), ("2", "-1"), ("3", "1"),
    ]  # fmt: skip
    assert "score 0.80, 9.4 % of the image" in html and "not marked" in html  # 225 of 2,400 pixels


def test_layers_are_the_masks() -> None:
    """Against the mask enlarged without interpolation: the same but for the outline."""
    fill, spot = (pixels(each) for each in page_pictures.layers(mask(5, 5, 20, 20), 0, (600, 400)))
    large = mask(5, 5, 20, 20).repeat(10, 0).repeat(10, 1)
    near = np.pad(large, 12)
    inner, outer = np.ones_like(large), np.zeros_like(large)
    for y in range(0, 25, 4):
        for x in range(0, 25, 4):
            inner &= near[y : y + 400, x : x + 600]
            outer |= near[y : y + 400, x : x + 600]
    assert (fill[~outer][:, 3] == 0).all() and (fill[inner][:, 3] > 80).all()
    assert (spot[inner][:, 3] == 0).all() and (spot[~outer][:, 3] > 160).all()
    assert (fill[..., 3] == 255).any() and tuple(fill[100, 100][:3]) == page_pictures.COLOURS[0]


def test_masks_before_refinement_and_of_other_turns() -> None:
    refined, coarse = (page_view.turn_layers(0, grounding(), View(refined=each)) for each in (True, False))
    assert refined != coarse and refined.count("gw-fill") == coarse.count("gw-spot") == 2
    assert re.findall(r'gw-fill" data-turn="0" data-phrase="(\d)"', refined) == ["1", "0"]  # the larger one below
    html = page_view.stage("data:,", {0: refined, 1: page_view.turn_layers(1, grounding(), View())}, "two")
    assert re.findall(r'gw-fill gw-on" data-turn="(\d)"', html) == ["1", "1"] and 'data-last="1"' in html


def test_attention_is_of_the_word_the_map_and_the_image() -> None:
    given = grounding()
    inside = given.attention[2, :, 1:5].astype(np.float32)  # the image's rows of the square
    mean = page_view.attention("data:,", given, 2, View(), MAPS, {})
    assert "mean of 3 attention maps" in mean
    brightness = pixels(source(mean, "gw-heat")).astype(int).sum(-1)
    assert brightness.shape == (4, 6)
    assert np.array_equal(np.argsort(brightness, None)[-3:], np.argsort(inside.mean(0), None)[-3:])
    one = page_view.attention("data:,", given, 2, View(kind="map", layer=2, head=2), MAPS, {})
    assert pixels(source(one, "gw-heat")).astype(int).sum(-1).argmax() == inside[2].argmax()
    assert "layer 2 of 2, head 2 of 2" in one
    absent = page_view.attention("data:,", given, 2, View(kind="map", layer=2, head=1), MAPS, {})
    assert "not among the maps" in absent and "gw-heat" not in absent
    for k in (2, 5):
        html = page_view.attention("data:,", given, 2, View(kind="kmeans", k=k), MAPS, {})
        assert len(np.unique(pixels(source(html, "gw-cells")).reshape(-1, 3), axis=0)) == k


def test_seconds_name_the_parts() -> None:
    assert Tags(page_view.seconds(grounding())).said == "answercaptureSAMselectordecodetogether1.00 s0.25 s–––1.25 s"


def test_what_is_kept_of_a_talk_is_bounded() -> None:
    talk = Talk()
    for _ in range(SHOWN + 3):
        talk.add(grounding())
    assert len(talk.turns) == SHOWN and min(talk.turns) == 3
    assert [len(turn.grounding.attention) for turn in talk.turns.values()] == [0] * (SHOWN - ATTENTIVE) + [
        4
    ] * ATTENTIVE
    talk.point(0, 0)
    assert talk.focus == (SHOWN + 2, 0)  # turn 0 is gone
    talk.point(3, 1)
    faded = page_view.attention("data:,", talk.focused(), 1, View(), MAPS, {})
    assert "not kept any more" in faded and "gw-heat" not in faded
    chat = page_view.chat({number: turn.grounding for number, turn in talk.turns.items()})
    assert chat.count("Stays marked by λ 0.30") == SHOWN - ATTENTIVE


def test_bytes_of_all_talks_are_bounded_and_the_oldest_fade_first() -> None:
    size = grounding().attention.nbytes
    sessions = Sessions(kept=2 * size)
    talks = [sessions.put(name, Talk()) for name in ("one", "two")]
    for number in (0, 1, 0, 1):
        talks[number].add(grounding())
        sessions.fit()
    assert [[turn.nbytes for turn in talk.turns.values()] for talk in talks] == [[0, size]] * 2
    sessions.kept = 1
    sessions.fit()
    assert [turn.nbytes for talk in talks for turn in talk.turns.values()] == [0, 0, 0, size]


def test_clusters_are_drawn_once_and_of_at_most_24_by_24_cells(monkeypatch: Any) -> None:
    """Quarters of a picture, each alike in itself, are the clusters, however many cells they have."""
    rows, columns = np.mgrid[:60, :60] // 30
    maps = np.stack([rows, columns]).astype(np.float32) + 0.01
    assert pixels(page_pictures.clusters(maps, 4)).shape == (24, 24, 3)
    found = pixels(page_pictures.clusters(maps[:, :, 12:42], 4)).astype(int) @ [1, 256, 65536]
    assert len(np.unique(found)) == 4 and found.shape == (24, 24)
    for part in (found[:12, :14], found[:12, 15:], found[12:, :14], found[12:, 15:]):
        assert len(np.unique(part)) == 1
    kept: dict[tuple[int, int], str] = {}
    view = View(kind="kmeans", k=3)
    first = page_view.attention("data:,", grounding(), 2, view, MAPS, kept)
    monkeypatch.setattr(page_pictures, "clusters", lambda *_: pytest.fail("drawn again"))
    assert page_view.attention("data:,", grounding(), 2, view, MAPS, kept) == first and list(kept) == [(2, 3)]


def test_sessions_are_bounded_and_forgotten() -> None:
    now = [0.0]
    sessions = Sessions(most=2, idle=60, clock=lambda: now[0])
    one, two, three = (sessions.put(name, Talk()) for name in ("one", "two", "one"))
    assert sessions["one"] is three and sessions["two"] is two is not one and len(sessions) == 2
    assert sessions["one"] is three
    sessions.put("three", Talk())
    assert sessions["one"] is three and len(sessions) == 2  # "two" was idle for longer
    now[0] = 61.0
    four = sessions.put("four", Talk())
    assert len(sessions) == 1 and sessions["four"] is four
    sessions.forget("four")
    sessions.forget("nobody")
    assert sessions["four"] is not four and len(sessions) == 0  # who has left does not come back
    sessions.put("five", Talk())
    now[0] = 122.0
    with sessions.swept(every=0.01):
        for _ in range(500):
            if not len(sessions):
                break
            time.sleep(0.01)
    assert len(sessions) == 0


def test_uploads_are_upright_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20), (10, 200, 30)).save(file, exif=exif)
    image, size = open_upload(file)
    assert image.size == size == (20, 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_large_uploads_are_shrunk_before_they_are_copied(mode: str, tmp_path: Path, monkeypatch: Any) -> None:
    """As large as the picture was made from: a quarter in red, the rest transparent or white."""
    monkeypatch.setattr(page_actions, "WORKING_SIDE", 40)
    given = Image.new("RGBA", (160, 80), (255, 255, 255, 0))
    given.paste((250, 10, 20, 255), (0, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    file = tmp_path / ("large.tif" if mode == "CMYK" else "large.png")
    given = (
        given if mode in ("RGBA", "LA", "P") else Image.alpha_composite(Image.new("RGBA", given.size, "white"), given)
    )
    given.convert(mode).save(file, **({} if mode == "CMYK" else {"exif": exif}))
    image, size = open_upload(file)
    assert (image.mode, image.size, size) == (
        ("RGB", (40, 20), (160, 80)) if mode == "CMYK" else ("RGB", (20, 40), (80, 160))
    )
    dark, light = ((5, 5), (30, 15)) if mode == "CMYK" else ((15, 10), (5, 30))
    if mode != "P":  # Pillow's palettes have no place for what is transparent
        assert image.getpixel(light) == (255, 255, 255)
    assert image.getpixel(dark)[1] < 130


@pytest.mark.parametrize("name", ["text.png", "empty.png", "gone.png", "many.png"])
def test_bad_uploads_are_told_without_a_path_and_removed(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(page_actions, "MAX_UPLOAD_PIXELS", 1000)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").touch()
    Image.new("L", (40, 26)).save(tmp_path / "many.png")
    with pytest.raises(DatasetError, match=f"^{name} ") as told:
        open_upload(tmp_path / name)
    assert str(tmp_path) not in str(told.value) and not (tmp_path / name).exists()


def test_errors_of_the_program_are_logged_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert "secret" not in said(KeyError("secret")) and "secret" in caplog.text
    assert said(DatasetError("what is wrong")) == "what is wrong"
    for full in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert said(full) == page_actions.FULL
