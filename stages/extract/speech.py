"""One answer of the frozen LMM as it is spoken: piece by piece, by the checkpoint's own settings, repeatable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from manifests.schema import Reply
from stages.extract.past import Past


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """What the LMM said to a question, and the question's past where the answer can be captured on top of it."""

    reply: Reply
    past: Past | None


class Pieces(TextStreamer):
    """Gives an answer's text to `on_text` as soon as it is certain; never the tokens `ends`, nor an empty piece."""

    def __init__(self, tokenizer: Any, ends: Collection[int], on_text: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.ends, self.on_text = torch.tensor(sorted(ends), dtype=torch.long), on_text

    def put(self, value: Tensor) -> None:
        """int64 [1, tokens] of the prompt, then [tokens] of the answer."""
        super().put(value if value.dim() > 1 else value[~torch.isin(value, self.ends)])

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The block's random numbers follow from `seed`; those of the caller go on as if there had been none."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
