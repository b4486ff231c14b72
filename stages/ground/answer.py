"""What the LMM said about an image, and what is remembered of both until the words are grounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from cache.priors import SamplePriors
from manifests.schema import Reply
from stages.extract.images import Box
from stages.extract.processor import Prompt


@dataclass(kw_only=True, slots=True, eq=False)
class SeenImage:
    """An image that several questions can be asked about: what was made of it is kept.

    image: RGB, upright.  prepared: uint8 [height, width, 3], what the LMM takes.  embedding: SAM's, float16
    [Ce, e, e], and the image's box in SAM's square, when they were first needed.
    """

    image: Image.Image
    prepared: np.ndarray
    embedding: np.ndarray | None = None
    sam_box: Box | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Answer:
    """What the LMM said. finished: False where it was cut off.  seconds: until its last token.

    turns: (question, answer) of the turns before, which the LMM saw.
    """

    seen: SeenImage = field(repr=False)
    question: str
    text: str
    finished: bool
    turns: tuple[tuple[str, str], ...]
    seconds: float
    reply: Reply = field(repr=False)
    prompt: Prompt = field(repr=False)
    past: Any = field(default=None, repr=False)
    """The prompt's keys and values, until they were used."""
    priors: SamplePriors | None = field(default=None, repr=False)
    """What was captured, when it was."""

    @property
    def image(self) -> Image.Image:
        """RGB, upright."""
        return self.seen.image
