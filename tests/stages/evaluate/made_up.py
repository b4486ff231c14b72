"""Measures of every protocol with made-up values: what reports and comparisons are tested with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.conversations import Caption, ConversationCase
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.measures import Measure
from stages.evaluate.pictures import Case

NO_JAVA = "METEOR needs Java: apt-get install default-jre-headless"
BREAKDOWN = ("small", "medium", "large", "1-2 words", "3-5 words", "6+ words")
LAMS = tuple(round(0.05 * k, 2) for k in range(1, 20))


def measure(metric: str = "ciou", value: float | None = 0.5, *, reach: float | None = 0.02, **changes: Any) -> Measure:
    """reach: half the interval's width, None for no interval."""
    found = None
    if value is not None:
        low, high = (None, None) if reach is None else (value - reach, value + reach)
        found = Estimate(value=value, low=low, high=high)
    given = {
        "protocol": "res-flmm",
        "dataset": "refcoco",
        "split": "val",
        "method": "refined",
        "images": 40,
        "items": 90,
    }
    return Measure(**given | {"metric": metric, "value": found} | changes)


def res(protocol: str = "res-flmm", base: float = 0.7, **of: Any) -> Iterator[Measure]:
    """cIoU, mIoU and P@t of refined and coarse masks, all and by group."""
    for method, less in (("refined", 0.0), ("coarse", 0.12)):
        for k, group in enumerate(("all", *BREAKDOWN)):
            level = base - less + 0.03 * (k % 4) - (0.03 if k else 0)
            about = of | {"protocol": protocol, "method": method, "group": group, "items": 90 if k == 0 else 30}
            yield measure("ciou", level, failed=2, **about)
            yield measure("miou", level + 0.02, failed=2, **about)
            for t in range(5, 10):
                yield measure(f"p@0.{t}", level + 0.1 - 0.08 * (t - 5), failed=2, **about)


def png(**of: Any) -> Iterator[Measure]:
    for method, less in (("refined", 0.0), ("coarse", 0.2)):
        for k, group in enumerate(("all", "thing", "stuff", "singular", "plural", *BREAKDOWN)):
            value = None if group == "plural" else 0.85 - less - 0.02 * k
            yield measure("average_recall", value, **{"protocol": "png", "method": method, "group": group} | of)


def reasonseg(**of: Any) -> Iterator[Measure]:
    for group in ("all", "short", "long"):
        for k, metric in enumerate(("giou", "ciou", "ciou_normalised")):
            yield measure(
                metric, 0.4 + 0.05 * k, **{"protocol": "reasonseg", "dataset": "reasonseg", "group": group} | of
            )


def gcg(protocol: str = "gcg", **of: Any) -> Iterator[Measure]:
    about = {"protocol": protocol, "dataset": "gcg"} | of
    yield measure("meteor", None, absent=NO_JAVA, **about)
    yield measure("cider", 1.234, **about)
    for metric, value in (("ap50", 0.3), ("miou", 0.61), ("recall[token_f1]", 0.4)):
        yield measure(metric, value, **about)


def keywords(lams: tuple[float, ...] = LAMS, **of: Any) -> Iterator[Measure]:
    methods = {f"selector λ={lam:g}": (0.9 - abs(lam - 0.3), 0.02 if lam == 0.3 else None) for lam in lams}
    for method, (level, reach) in (methods | {"every noun phrase": (0.7, 0.02), "lexicon": (0.6, 0.02)}).items():
        for group, less in (("word", 0.0), ("phrase", 0.2), ("overlap", 0.1)):
            for metric in ("precision", "recall", "f1"):
                about = {"protocol": "keywords", "dataset": "png", "method": method, "group": group, "items": 20} | of
                yield measure(metric, max(0.02, level - less), reach=reach, **about)


def everything(**run: Any) -> Evaluation:
    """Every protocol, two failures, a text model, a recall curve."""
    points = [(k / 10, 1 - (k / 10) ** 2) for k in range(11)]
    return Evaluation(
        run={
            "lmm": "llava-hf/llava-1.5-7b-hf", "head": "unet-sam, 8,712,345 parameters", "weights": "8b7c" * 16,
            "cache": "/fast/llava-refcoco", "samples": 120, "lam": 0.3, "seconds": 12.5,
            "identity": {"merge": "mean", "lmm": {"dtype": "bfloat16"}}, **run,
        },
        measures=[
            *res(), *res(split="testA", base=0.75), *res(dataset="scenes-refcoco", base=0.8),
            *res("res-lisa", base=0.6), *png(dataset="png"), *reasonseg(), *gcg(), *gcg("gcg-strict"), *keywords(),
        ],
        text_models={"similarity": {"name": "token_f1", "stand-in": True}, "noun chunks": "spaCy en_core_web_sm 3.8.0"},
        failures={"refcoco-17": "the image is truncated (3,124 of 81,920 bytes)", "refcoco-18": "an empty expression"},
        curves={"png val": {"all": points, "thing": points[::2], "stuff": points[:1] + points[-1:]}},
    )  # fmt: skip


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    """Two coloured squares on a sloping ground: uint8 [height, width, 3]."""
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = np.linspace(120, 200, width).astype(np.uint8)[None, :, None]
    image[square(height, width, 8, 10, 22)] = (200, 60, 40)
    image[square(height, width, 24, 44, 28)] = (40, 90, 200)
    return image


def case(kind: str = "best", caption: str = "the red square on the left") -> Case:
    truth, refined = square(60, 80, 8, 10, 22), square(60, 80, 9, 11, 22)
    attention = np.random.default_rng(0).random((12, 16)) * 0.2
    attention[2:6, 2:6] += 0.8
    return Case(
        image=picture(), truth=truth, refined=refined, coarse=square(60, 80, 10, 8, 26), attention=attention,
        caption=caption, iou=0.87, coarse_iou=0.55, kind=kind,
    )  # fmt: skip


def conversation(
    kind: str = "best", words: str = "There is a red square next to a large blue square on grey ground ."
) -> ConversationCase:
    said = tuple(words.split())
    red, blue = square(60, 80, 8, 10, 22), square(60, 80, 24, 44, 28)
    numbers = (
        tuple([-1, -1, 0, 0, 0, -1, -1, 1, 1, 1, 1] + [-1] * (len(said) - 11)) if len(said) > 11 else (0,) * len(said)
    )
    reference = ("A", "crimson", "square", "and", "a", "ball")
    return ConversationCase(
        image=picture(),
        reply=Caption(words=said, phrases=numbers, masks={0: red, 1: blue}),
        reference=Caption(words=reference, phrases=(0, 0, 0, -1, 2, 2), masks={0: red, 2: square(60, 80, 40, 2, 12)}),
        kind=kind,
        note="1 of 2 phrases found, mean IoU 87",
    )  # fmt: skip
