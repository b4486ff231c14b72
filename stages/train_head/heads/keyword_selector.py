"""The keyword selector: which words of an answer name an object that should get a mask.

It scores tokens; `stages.evaluate.keywords` makes words and phrases of them. A answer tokens, d the LMM's width.
"""

from __future__ import annotations

from torch import Tensor, nn


class KeywordSelector(nn.Linear):
    """Linear(d, 1) on the last layer's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [A, d] -> logits [A]."""
        return super().forward(hidden)[:, 0]
