"""The page: hostile text stays text, nothing is loaded from elsewhere, it shows the numbers."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from stages.evaluate.conversations import COLOURS, Caption, ConversationCase, draw_caption
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.page import page
from tests.stages.evaluate.made_up import case, conversation, everything, keywords, measure, picture, png, res, square

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)>\" & 'ring'"


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def hostile_page() -> str:
    """Hostile text wherever text comes from data, models or paths."""
    names = {"dataset": HOSTILE, "split": HOSTILE, "protocol": HOSTILE}
    measures = [
        measure(**names, method=HOSTILE, group=HOSTILE, metric=HOSTILE),
        measure(value=None, absent=HOSTILE, **names),
    ]
    evaluation = Evaluation(
        run={"lmm": HOSTILE, "head": HOSTILE, "identity": {"cache": {HOSTILE: HOSTILE}}},
        measures=[*measures, measure(**names, group="other", metric=HOSTILE), *png(dataset="png")],
        text_models={HOSTILE: {HOSTILE: HOSTILE}},
        failures={HOSTILE: HOSTILE},
        curves={"png val": {HOSTILE: [(0.0, 1.0), (1.0, 0.0)]}},
    )
    talk = ConversationCase(
        image=picture(), reply=Caption(words=(HOSTILE, HOSTILE), phrases=(0, -1)), kind=HOSTILE, note=HOSTILE
    )
    return page(evaluation, [case(HOSTILE, HOSTILE)], [talk])


def test_hostile_text_stays_text() -> None:
    reader = Reader(hostile_page())
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in reader.tags}
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]
    assert "".join(reader.text).count("<script>alert('x')</script>") >= 25


def test_the_page_loads_nothing() -> None:
    html = page(everything(), [case(), case()], [conversation()])
    reader = Reader(html)
    anchors = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
    for link in reader.attributes("href"):  # to follow, not to load
        assert link[1:] in anchors if link.startswith("#") else link.startswith("https://arxiv.org/abs/")
    assert {tag for tag, attrs in reader.tags if "href" in attrs} == {"a"} and reader.attributes("srcset") == []
    sources = reader.attributes("src")
    assert len(sources) == 2 * 5 + 2
    for source, size in zip(sources, [(320, 240)] * 10 + [(480, 360)] * 2, strict=True):
        head, data = source.split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == size
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_shows_the_numbers() -> None:
    html = page(Evaluation(run={}, measures=[measure(value=0.1234, reach=0.05, failed=3), measure("miou", None)]))
    assert '<td class="n">12.3<small>7.3 – 17.3</small></td>' in html and '<td class="n">–</td>' in html
    assert '<td class="n bad">3</td>' in html
    shown = "".join(Reader(page(everything())).text)
    for words in ("Referring expressions, F-LMM's protocol", "Reasoning segmentation", "token_f1", "stand-in: true",
                  "spaCy en_core_web_sm", "an empty expression", "published", "METEOR needs Java"):  # fmt: skip
        assert words in shown


def test_charts() -> None:
    html = page(everything())
    assert "Recall, png val" in html and html.count("<polyline") == 3 + 4  # all, thing, stuff; the selector's four
    assert "The selector’s threshold, png val" in html
    one = page(Evaluation(run={"lam": 0.3}, measures=list(keywords((0.3,)))))
    assert "<polyline" not in one  # a single threshold is no curve
    forests = html.count('class="forest"')
    assert forests == 3 + 1 + 1 + 1  # res-flmm of three data sets, res-lisa, png, reasonseg: those with groups


def test_headline_numbers_are_of_final_methods() -> None:
    def tiles(*measures) -> list[str]:
        text = "".join(Reader(page(Evaluation(run={"lam": 0.3}, measures=list(measures)))).text)
        return [line.strip() for line in text.split("failed samples")[0].splitlines() if line.strip()]

    both = tiles(*res())
    assert "70.0" in both and "58.0" not in both and "res-flmm: cIoU" in both
    assert "58.0" in tiles(*(each for each in res() if each.method == "coarse"))
    words = tiles(*keywords())
    assert "90.0" in words and "keywords: word F1" in words and "70.0" not in words


def test_an_empty_evaluation_still_reports() -> None:
    html = page(Evaluation(run={}))
    assert "What was run" in html and "<table" not in html


def test_many_failures_are_cut_and_counted() -> None:
    html = page(replace(everything(), failures={f"s{k}": "gone" for k in range(300)}))
    assert html.count("gone") == 200 and "300 samples were never extracted" in " ".join(html.split())


def test_a_captions_phrases_are_marked_in_their_colours() -> None:
    html = page(Evaluation(run={}), conversations=[conversation()])
    marks = [attrs for tag, attrs in Reader(html).tags if tag == "mark"]
    colours = ["#{:02x}{:02x}{:02x}".format(*COLOURS[number]) for number in (0, 1, 0, 2)]
    assert [mark["style"] for mark in marks] == [f"--c: {colour}" for colour in colours]
    assert ">a red square</mark>" in html and ">A crimson square</mark>" in html  # runs of words are one phrase
    caption = Caption(words=("a", "b", "c", "d"), phrases=(3, 3, -1, 3))
    assert caption.runs() == [("a b", 3), ("c", -1), ("d", 3)]
    bare = page(Evaluation(run={}), conversations=[ConversationCase(image=picture(), reply=caption)])
    assert bare.count('class="bare"') == 2 and "Reference</h3>" not in bare


def test_a_captions_masks_are_drawn_where_they_are() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    large, small = square(60, 80, 0, 0, 60), square(60, 80, 20, 20, 20)
    drawn = np.asarray(draw_caption(image, Caption(words=(), phrases=(), masks={0: small, 1: large}), 80)).astype(int)
    assert drawn.shape == image.shape
    inside, around, outside = drawn[30, 30], drawn[10, 10], drawn[30, 72]
    red, green = np.array(COLOURS[0]), np.array(COLOURS[1])
    assert abs(inside - red).sum() < abs(inside - green).sum()  # the small one lies over the large one
    assert abs(around - green).sum() < abs(around - red).sum()
    assert np.ptp(outside) < 4


def test_a_mask_of_another_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the mask of phrase 4 must be bool \(60, 80\)"):
        ConversationCase(image=picture(), reply=Caption(words=("a",), phrases=(4,), masks={4: np.zeros((6, 8), bool)}))
    with pytest.raises(ValueError, match="2 words have 1 phrase numbers"):
        Caption(words=("a", "b"), phrases=(0,))
