"""The HTML page of an evaluation: one file; no scripts, nothing from elsewhere, and a policy that forbids them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from stages.evaluate.bootstrap import Estimate
from stages.evaluate.conversations import COLOURS, ConversationCase, draw_caption
from stages.evaluate.evaluation import Evaluation
from stages.evaluate.measures import Measure
from stages.evaluate.pictures import Case, draw_panels
from stages.evaluate.tables import LAMBDA, Section, finals_of, in_sweep, percent, sections
from stages.evaluate.titles import metric_title

_PANEL: Final = 320  # side of a picture in the page, pixels: shown at about half of it, sharp on dense screens
_TALK: Final = 480  # side of a caption's picture
_FAILURES_SHOWN: Final = 200
_SWEPT: Final = (("word", "f1"), ("word", "precision"), ("word", "recall"), ("phrase", "f1"))

Line = tuple[str, str]  # name, SVG points


@dataclass(frozen=True, kw_only=True, slots=True)
class Charts:
    """Of a section. lines: (title, name of the x axis, lines).  forests: (title, (label, value) each).

    groups: the names of those that the breakdown tells apart.
    """

    lines: list[tuple[str, str, list[Line]]]
    forests: list[tuple[str, list[tuple[str, Estimate | None]]]]
    groups: str


def page(evaluation: Evaluation, cases: Sequence[Case] = (), conversations: Sequence[ConversationCase] = ()) -> str:
    """Every text is escaped: expressions and failure reasons come from data."""
    run, lam = evaluation.run, evaluation.run.get("lam")
    found = sections(evaluation.measures, lam=lam)
    nested = {name: value for name, value in run.items() if isinstance(value, Mapping)}
    return render(
        "report.html.j2",
        e=evaluation,
        plain={name: value for name, value in run.items() if name not in nested},
        nested={name: json.dumps(value, indent=2, ensure_ascii=False, default=str) for name, value in nested.items()},
        text_models={name: _spoken(value) for name, value in evaluation.text_models.items()},
        tiles=_tiles(found, evaluation.measures, lam),
        sections=[(section, _charts(section, evaluation)) for section in found],
        failures=list(evaluation.failures.items())[:_FAILURES_SHOWN],
        cases=[(case, [(panel, _data_url(panel.picture)) for panel in draw_panels(case, _PANEL)]) for case in cases],
        conversations=[(case, _sides(case)) for case in conversations],
    )


def render(template: str, **facts: Any) -> str:
    """A template of this folder, filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "bracket": lambda value: f"{percent(value.low)} – {percent(value.high)}",
        "place": lambda value: f"{min(100.0, max(0.0, 100 * value)):.2f}",
        "colour": lambda number: "#{:02x}{:02x}{:02x}".format(*COLOURS[number % len(COLOURS)]),
    }
    return environment.get_template(template).render(**facts)


def headline(section: Section, measures: Sequence[Measure]) -> list[Measure]:
    """The protocol's first number of each (dataset, split) and final method."""
    ours = [each for each in measures if each.protocol == section.protocol]
    known = {(each.group, each.metric) for each in ours}
    chosen = section.title.headline
    if chosen not in known:
        chosen = (ours[0].group, ours[0].metric)
    return [each for each in ours if (each.group, each.metric) == chosen and each.method in finals_of(ours, each)]


def _tiles(
    found: Sequence[Section], measures: Sequence[Measure], lam: float | None
) -> list[tuple[str, str, Estimate | None]]:
    """The numbers at the top: (of what, its name, value)."""
    shown = [each for each in measures if not in_sweep(each.method, lam)]
    tiles = []
    for section in found:
        for each in headline(section, shown):
            group = "" if each.group == "all" else f"{each.group} "
            name = f"{section.protocol}: {group}{metric_title(each.metric)}"
            tiles.append((f"{each.dataset} {each.split}", name, each.value))
    return tiles


def _charts(section: Section, evaluation: Evaluation) -> Charts:
    ours = [each for each in evaluation.measures if each.protocol == section.protocol]
    places = list(dict.fromkeys(f"{each.dataset} {each.split}" for each in ours))
    lines = [
        (
            f"Recall, {name}",
            "IoU threshold",
            [(line, _points(points)) for line, points in evaluation.curves[name].items()],
        )
        for name in places
        if section.protocol == "png" and name in evaluation.curves
    ]
    for name in places:
        swept = _sweep([each for each in ours if f"{each.dataset} {each.split}" == name])
        if swept:
            lines.append((f"The selector’s threshold, {name}", "threshold λ", swept))
    shown = [each for each in ours if not in_sweep(each.method, evaluation.run.get("lam"))]
    groups = list(dict.fromkeys(row.group for row in section.breakdown.rows)) if section.breakdown else []
    return Charts(lines=lines, forests=_forests(section, shown) if groups else [], groups=", ".join(groups))


def _sweep(measures: Sequence[Measure]) -> list[Line]:
    """The selector over its thresholds; nothing where there are fewer than two. A value that is absent is left out."""
    lams = {each.method: float(match[2]) for each in measures if (match := LAMBDA.match(each.method))}
    if len(lams) < 2:
        return []
    lines = []
    for group, metric in _SWEPT:
        of = [each for each in measures if each.method in lams and (each.group, each.metric) == (group, metric)]
        points = sorted((lams[each.method], each.value.value) for each in of if each.value)
        if points:
            lines.append((f"{group} {metric_title(metric)}", _points(points)))
    return lines


def _forests(section: Section, measures: Sequence[Measure]) -> list[tuple[str, list[tuple[str, Estimate | None]]]]:
    """The headline's metric of every group, a picture for each (dataset, split, final method)."""
    return [
        (
            f"{metric_title(first.metric)}, {first.dataset} {first.split}, {first.method}",
            [
                (each.group, each.value)
                for each in measures
                if (each.dataset, each.split, each.method, each.metric)
                == (first.dataset, first.split, first.method, first.metric)
            ],
        )
        for first in headline(section, measures)
    ]


def _points(points: Sequence[tuple[float, float]]) -> str:
    """SVG points of values in [0, 1] x [0, 1] in a chart of 400 x 200, y up."""
    return " ".join(f"{400 * x:.1f},{200 - 200 * y:.1f}" for x, y in points)


def _sides(case: ConversationCase) -> list[tuple[str, Any, str]]:
    """(title, caption, picture's address) of the reply, and of the reference if there is one."""
    sides = [("The LMM", case.reply), ("Reference", case.reference)]
    return [
        (title, text, _data_url(draw_caption(case.image, text, _TALK))) for title, text in sides if text is not None
    ]


def _spoken(value: Any) -> str:
    """ "name: token_f1, stand-in: true" """
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_spoken(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
