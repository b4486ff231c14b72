"""The built-in question set, asked with capture off and on: accuracy by kind of question, and every difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.schema import Reply
from stages.evaluate.bootstrap import estimate
from stages.evaluate.measures import Measure
from stages.evaluate.qa.exchanges import Exchange, equality
from stages.evaluate.qa.questions import KINDS, MAX_NEW_TOKENS, SPLITS, Question, scene_questions
from stages.evaluate.qa.speakers import Plain, off_then_on
from stages.extract.presets import LMMPreset


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneCheck:
    """What was asked and said.  about: the part of qa.json.  measures: accuracy of both, by kind of question."""

    exchanges: list[Exchange]
    measures: list[Measure]
    about: dict[str, Any]


def check_scenes(
    preset: LMMPreset,
    number: int,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Callable[[Iterable[Question]], Iterable[Question]] = lambda questions: questions,
) -> SceneCheck:
    """Ask `number` questions of the built-in set twice. progress: wraps the questions of each run."""
    questions = scene_questions(number)

    def ask(_name: str, speaker: Plain) -> list[Reply]:
        return [speaker.reply(each.image, each.text, MAX_NEW_TOKENS) for each in progress(questions)]

    both = off_then_on(preset, device, dtype, ask)
    exchanges = [
        Exchange(name=each.question_id, task=each.kind, question=each.text, on=on, off=off)
        for each, on, off in zip(questions, both.on, both.off, strict=True)
    ]
    measures = [
        measure
        for method, replies in (("capture on", both.on), ("capture off", both.off))
        for measure in accuracies(questions, replies, method)
    ]
    about = equality(exchanges) | {"attention": both.attention, "capture": both.capture}
    return SceneCheck(exchanges=exchanges, measures=measures, about=about)


def accuracies(questions: list[Question], replies: list[Reply], method: str) -> list[Measure]:
    """Share of right answers, of all and by kind of question."""
    images = np.array([each.image_id for each in questions])
    right = np.array([each.is_right(said.text) for each, said in zip(questions, replies, strict=True)], np.float64)
    kinds = np.array([each.kind for each in questions])
    found = []
    for group in ("all", *KINDS):
        chosen = np.ones(len(kinds), bool) if group == "all" else kinds == group
        found.append(
            Measure(
                protocol="qa",
                dataset="scenes",
                split="+".join(SPLITS),
                method=method,
                group=group,
                metric="accuracy",
                value=estimate(images[chosen], right[chosen], np.ones(int(chosen.sum()))),
                images=len(set(images[chosen])),
                items=int(chosen.sum()),
            )
        )
    return found
