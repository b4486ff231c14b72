"""The keyword selector: which words of an answer name an object that should get a mask.

Letters: A answer tokens, d the LMM's width, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

THRESHOLD = 0.3
"""Lambda of the paper: the probability above which a word is selected."""


class KeywordSelector(nn.Linear):
    """Linear(d, 1) on the last layer's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [A, d] -> logits [A]."""
        return super().forward(hidden)[:, 0]


def word_scores(logits: Tensor, words: Tensor) -> Tensor:
    """A word's probability is the greatest of its tokens'.

    `logits`: float [A]; `words`: int64 [A], the running number of the word a token belongs to. Returns float [W].
    """
    scores = torch.zeros(int(words.max()) + 1 if len(words) else 0, dtype=logits.dtype, device=logits.device)
    return scores.scatter_reduce(0, words, logits.sigmoid(), reduce="amax")


def keyword_runs(scores: Tensor, threshold: float = THRESHOLD) -> list[range]:
    """Runs of neighbouring words with a score above `threshold`: each is one phrase. `scores`: float [W]."""
    runs: list[range] = []
    for word in (scores > threshold).nonzero().flatten().tolist():
        if runs and runs[-1].stop == word:
            runs[-1] = range(runs[-1].start, word + 1)
        else:
            runs.append(range(word, word + 1))
    return runs
