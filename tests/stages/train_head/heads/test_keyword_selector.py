from __future__ import annotations

import torch

from stages.train_head.heads.keyword_selector import KeywordSelector, keyword_runs, word_scores


def test_one_logit_per_token() -> None:
    torch.manual_seed(0)
    selector, hidden = KeywordSelector(5), torch.randn(4, 5)
    expected = [sum(w * x for w, x in zip(selector.weight[0], row, strict=True)) + selector.bias[0] for row in hidden]
    torch.testing.assert_close(selector(hidden), torch.stack(expected))
    assert selector(hidden[:0]).shape == (0,)


def test_a_word_scores_as_its_best_token() -> None:
    logits = torch.tensor([-2.0, 3.0, 0.5, -1.0, -4.0])
    scores = word_scores(logits, torch.tensor([0, 0, 2, 1, 1]))
    torch.testing.assert_close(scores, torch.tensor([3.0, -1.0, 0.5]).sigmoid())
    assert word_scores(logits[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_neighbouring_positive_words_are_one_phrase() -> None:
    scores = torch.tensor([0.31, 0.9, 0.3, 0.1, 0.8, 0.0, 0.4])
    assert keyword_runs(scores) == [range(0, 2), range(4, 5), range(6, 7)]
    assert keyword_runs(scores, threshold=0.85) == [range(1, 2)]
    assert keyword_runs(scores[:0]) == []
