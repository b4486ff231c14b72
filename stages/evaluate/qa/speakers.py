"""Who answers: the LMM that extraction uses, capturing while it speaks, or the same checkpoint with nothing installed.

*Capture on* means, for every single answer:

1. the model's attention is the capturing implementation, and it is at work in the pass over the whole prompt with
   which the answer begins: every layer leaves the prompt's last row (the one that the first word is read from);
2. after the answer the same object runs a capturing pass over prompt and answer, as extraction does, and every layer
   leaves the rows of the answer's tokens: a state that it left behind would show in the next answer;
3. all those rows hold finite attention on the image, not all of it zero: ModelError otherwise.

*Off* means that transformers loaded the checkpoint and nothing was registered with it: its baseline implementation.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from manifests.errors import ModelError
from manifests.schema import Reply
from stages.extract.attention import WordRows
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import LMMPreset
from stages.extract.processor import Asked, LMMInput, LMMProcessor
from stages.extract.repair import repaired

TOLERANCE: Final = 1e-3
"""Shares of a softmax row add up to 1 within this, in float32 and over thousands of keys."""
T = TypeVar("T")


class PlainLMM(FrozenLMM):
    """The checkpoint as transformers loads it, and no capture: it can `reply`, not `run`."""

    def __init__(self, preset: LMMPreset, device: str = "cpu", dtype: str | None = None):
        self.preset, self.device = preset, torch.device(device)
        options = {"dtype": getattr(torch, dtype or preset.dtype), "device_map": None}
        # frozen as the captured one: torch rounds products with weights that require grad in another way
        self.model = repaired(self._load(options).eval().requires_grad_(False))
        self.processor = LMMProcessor(preset)


class Plain:
    """An LMM that answers one question at a time, always with the likeliest token."""

    def __init__(self, lmm: FrozenLMM):
        self.lmm = lmm

    @property
    def attention(self) -> str:
        """The attention implementation of the text decoder."""
        return str(self.lmm.model.config.get_text_config(decoder=True)._attn_implementation)

    def reply(self, image: Image.Image, question: str, max_new_tokens: int) -> Reply:
        """The answer to a question about an RGB image."""
        return self._said(self._asked(image, question), max_new_tokens)

    def _asked(self, image: Image.Image, question: str) -> Asked:
        return Asked(image=self.lmm.prepare(image), prompt=self.lmm.processor.prompt(question, image.size))

    def _said(self, asked: Asked, max_new_tokens: int) -> Reply:
        (reply,) = self.lmm.reply([asked], max_new_tokens)
        return reply


class Capturing(Plain):
    """The LMM of extraction with capture on (see the module), and how much it captured.

    prompts, answers: capturing passes beside answers, and over them.  rows: attention rows of each layer and head in
    all of them.  mass: least share of a row's attention that was on the image, mean over layers and heads.
    """

    def __init__(self, lmm: FrozenLMM):
        super().__init__(lmm)
        self.prompts = self.answers = self.rows = 0
        self.mass = 1.0

    def reply(self, image: Image.Image, question: str, max_new_tokens: int) -> Reply:
        """The answer, given while the prompt's last row was captured and followed by the capture of its own rows."""
        asked = self._asked(image, question)
        last = len(asked.prompt.ids) - 1
        columns = [column for view in asked.prompt.views for column in view.columns]
        with self.lmm.capture.beside([WordRows(objects=[[last]], columns=columns, answer=[])]) as captured:
            reply = self._said(asked, max_new_tokens)
        self.prompts += 1
        self._count(captured[0], 1)
        if reply.ids:
            spoken = range(len(reply.ids))
            whole = LMMInput(
                image=asked.image, prompt=asked.prompt, answer_ids=list(reply.ids), object_tokens=[list(spoken)]
            )
            self.answers += 1
            self._count(self.lmm.run([whole]).attention, len(spoken))
        return reply

    def summary(self) -> dict[str, int | float]:
        """What was captured, as it is filed."""
        capture = self.lmm.capture
        return {
            "layers": len(capture.attentions),
            "heads": capture.config.num_attention_heads,
            "prompt_passes": self.prompts,
            "answer_passes": self.answers,
            "rows": self.rows,
            "least_image_mass": self.mass,
        }

    def _count(self, maps: Tensor, rows: int) -> None:
        """maps: float32 [1, A, N, P], of so many rows."""
        mass = maps.double().sum(-1)
        if not bool(mass.isfinite().all()) or not bool((mass <= 1 + TOLERANCE).all()) or not mass.any():
            raise ModelError(
                f"{self.lmm.preset.source}: what was captured is no attention on the image (between "
                f"{mass.min().item():.3g} and {mass.max().item():.3g} of a row): the check means nothing"
            )
        self.rows += rows
        self.mass = min(self.mass, mass.mean().item())


@dataclass(frozen=True, kw_only=True, slots=True)
class Both(Generic[T]):
    """What the two said to the same questions.

    attention: the attention implementation of "off" and of "on".  capture: how much was captured with it on.
    """

    off: T
    on: T
    attention: dict[str, str]
    capture: dict[str, int | float]


def off_then_on(preset: LMMPreset, device: str, dtype: str | None, ask: Callable[[str, Plain], T]) -> Both[T]:
    """Ask the plain checkpoint, then, when it has left the memory, the LMM of extraction with capture on.

    In this order, because some attention functions are replaced for the whole process when capture is first installed.
    ask: is given "off" or "on", and who answers.
    """
    plain: Any = Plain(PlainLMM(preset, device, dtype))
    attention, off = {"off": plain.attention}, ask("off", plain)
    del plain
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    capturing = Capturing(FrozenLMM(preset, device, dtype))
    on = ask("on", capturing)
    return Both(off=off, on=on, attention=attention | {"on": capturing.attention}, capture=capturing.summary())
