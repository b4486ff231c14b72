"""One grounded caption to look at: the text with its phrases in the colours of their masks, next to the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

from stages.evaluate.pictures import PAPER, Colour, enlarged, enlarged_mask, outline

COLOURS: Final[tuple[Colour, ...]] = (
    (214, 31, 105),
    (0, 135, 122),
    (217, 119, 6),
    (91, 107, 214),
    (86, 140, 20),
    (168, 85, 200),
    (2, 132, 199),
    (180, 83, 30),
)
"""Of phrases 0, 1, …, from the start again where there are more."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Caption:
    """A text and what it grounds.

    words: split at white space.  phrases: int per word, the number of the phrase it is part of, -1 for none; words that
    touch and have the same number are one phrase.  masks: phrase number -> bool [height, width], pixels of the original
    image; a phrase without a mask is marked in the text alone.
    """

    words: tuple[str, ...]
    phrases: tuple[int, ...]
    masks: Mapping[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.phrases):
            raise ValueError(f"{len(self.words)} words have {len(self.phrases)} phrase numbers")

    def runs(self) -> list[tuple[str, int]]:
        """The text in pieces: touching words of one phrase, or of none, with its number."""
        pieces: list[tuple[list[str], int]] = []
        for word, number in zip(self.words, self.phrases, strict=True):
            if pieces and pieces[-1][1] == number:
                pieces[-1][0].append(word)
            else:
                pieces.append(([word], number))
        return [(" ".join(words), number) for words, number in pieces]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConversationCase:
    """What the LMM said of an image, and what is right.

    image: uint8 [height, width, 3].  reply: the LMM's caption with the head's masks.  reference: the caption that is
    right, with the true masks, if there is one. A number is a colour in both: give phrases that were matched with each
    other the same one.  kind: why it was chosen ("best", …), or "".  note: a line below it (its scores), or "".
    """

    image: np.ndarray
    reply: Caption
    reference: Caption | None = None
    kind: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for caption in (self.reply, self.reference):
            for number, mask in (caption.masks if caption else {}).items():
                if mask.dtype != bool or mask.shape != self.image.shape[:2]:
                    raise ValueError(
                        f"the mask of phrase {number} must be bool {self.image.shape[:2]} like the image, "
                        f"got {mask.dtype} {mask.shape}"
                    )


def draw_caption(image: np.ndarray, caption: Caption, side: int) -> Image.Image:
    """The image, pale where no phrase is, with all masks in their phrases' colours; longer side `side` pixels.

    Smaller masks are drawn over larger ones.
    """
    base = enlarged(image, side)
    grey = base.convert("L").convert("RGB")
    picture = Image.blend(grey, Image.new("RGB", base.size, PAPER), 0.45)
    for number, mask in sorted(caption.masks.items(), key=lambda item: -int(item[1].sum())):
        colour = COLOURS[number % len(COLOURS)]
        inside = enlarged_mask(mask, base.size)
        picture.paste(Image.blend(grey, Image.new("RGB", base.size, colour), 0.6), mask=inside)
        outline(picture, inside, colour)
    return picture.reduce(2)
