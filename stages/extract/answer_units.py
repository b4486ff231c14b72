"""Units of questions, which the LMM answers together in one batch, before anything is planned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch

from manifests.errors import DatasetError, PipelineError
from manifests.schema import Reply
from stages.extract.checkpoint import first_line
from stages.extract.lmm import FrozenLMM
from stages.extract.prior_units import load_lmm
from stages.extract.processor import Asked
from stages.extract.texts import takes_no_image
from stages.extract.work import WorkerConfig

BATCH: Final = 8  # questions of a unit; rounding depends on it, and so does an answer here and there


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What an answer depends on besides the LMM, and whose it is. image: sha256 (hex) of the image file."""

    sample_id: str
    prompt: str
    image: str
    path: str
    size: tuple[int, int]
    """(width, height), pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerUnit:
    """Questions that are asked together."""

    number: int
    questions: tuple[Question, ...]

    def __str__(self) -> str:
        return f"answers {self.number * BATCH} to {self.number * BATCH + len(self.questions) - 1}"


class AnswerWorker:
    """Asks one unit of questions after the other. The model is loaded with the first."""

    def __init__(self, config: WorkerConfig, most: int):
        """most: tokens of an answer."""
        self.config, self.most = config, most
        torch.set_num_threads(config.threads)

    @cached_property
    def lmm(self) -> FrozenLMM:
        return load_lmm(self.config)

    def run(self, unit: AnswerUnit) -> dict[str, Any]:
        """The unit's `rows` of answers.parquet; a question that can not be asked has an error instead of an answer."""
        if self.config.device.startswith("cuda:"):
            torch.cuda.set_device(self.config.device)
        asked: list[Asked] = []
        reasons: list[str | None] = []
        for question in unit.questions:
            try:
                asked.append(self._asked(question))
                reasons.append(None)
            except DatasetError as error:
                reasons.append(str(error))
        said = iter(self._said(unit, asked))
        rows = []
        for question, reason in zip(unit.questions, reasons, strict=True):
            reply = next(said) if reason is None else Reply(ids=(), words=(), text="", finished=False)
            row = {name: getattr(question, name) for name in ("sample_id", "prompt", "image")}
            row |= {name: getattr(reply, name) for name in ("ids", "words", "text", "finished")}
            rows.append(row | {"error": reason})
        return {"unit": unit.number, "rows": rows}

    def _said(self, unit: AnswerUnit, asked: list[Asked]) -> list[Reply]:
        try:
            return self.lmm.reply(asked, self.most) if asked else []
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise PipelineError(
                f"{unit} do not fit into the memory of {self.config.device} ({first_line(error)}), even one by one: "
                "give --gpus-per-worker 2 or more, --dtype bfloat16, or a --device with more"
            ) from error

    def _asked(self, question: Question) -> Asked:
        image = self.config.open(question.path, question.size, question.image)
        try:
            prompt = self.lmm.processor.prompt(question.prompt, question.size)
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(takes_no_image(question.size, error)) from None
        if self.lmm.processor.room(prompt, self.most) < 1:
            raise DatasetError(
                f"the image and the question are {len(prompt.ids)} tokens, and the LMM's context has "
                f"{self.lmm.processor.context}: ask a shorter one, or leave it out"
            )
        return Asked(image=self.lmm.prepare(image), prompt=prompt)
