"""A small set of questions about held-out rendered scenes: what the tiny LMM was taught to answer.

Its accuracy says something of the embedded LMM only; whether two runs give the same answers can be asked of any.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Final

from PIL import Image

from manifests.scenes.lessons import listing, question
from manifests.scenes.world import make_scene

SPLITS: Final = ("testA", "testB", "narratives")
"""No model learns from these scenes. Those of `shifted` have a texture that the questions do not name."""
KINDS: Final = ("colour", "texture", "ground", "count", "exists", "listing")
"""Answers of the last kind name everything in the picture: up to 60 tokens, where one that differs changes the rest."""
MAX_NEW_TOKENS: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about a scene. image: RGB.  image_id: split and number of the scene.  truth: the right answer."""

    question_id: str
    kind: str
    split: str
    image_id: str
    image: Image.Image
    text: str
    truth: str

    def is_right(self, answer: str) -> bool:
        """The right words and no others; case and full stops do not count."""
        return _words(answer) == _words(self.truth)


def kind_of(text: str) -> str:
    """Which of KINDS a question of `manifests.scenes.lessons` is of."""
    starts = {
        "what colour": "colour", "where is": "ground", "how many": "count", "is there": "exists", "What is": "listing",
    }  # fmt: skip
    return next((kind for start, kind in starts.items() if text.startswith(start)), "texture")


def scene_questions(number: int) -> list[Question]:
    """So many questions, equally many of each kind (one more of some where that can not be): always the same ones."""
    most, taken = -(-number // len(KINDS)), Counter[str]()
    found: list[Question] = []
    for scene_number in count():
        split, index = SPLITS[scene_number % len(SPLITS)], scene_number // len(SPLITS)
        if len(found) >= number:
            break
        scene = make_scene(split, index)
        image = Image.fromarray(scene.image)
        asked: set[str] = set()
        for attempt in range(2 * len(KINDS)):
            rng = random.Random(f"{split} {index} {attempt}")
            text, truth = question(scene, rng) if attempt else listing(scene, rng)
            kind = kind_of(text)
            if kind in asked or taken[kind] == most or len(found) >= number:
                continue
            asked.add(kind)
            taken[kind] += 1
            found.append(
                Question(
                    question_id=f"{split}/{index}/{kind}",
                    kind=kind,
                    split=split,
                    image_id=f"{split}/{index}",
                    image=image,
                    text=text,
                    truth=truth,
                )
            )
    return found


def _words(text: str) -> list[str]:
    return text.casefold().replace(".", " ").split()
