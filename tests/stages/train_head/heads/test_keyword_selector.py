from __future__ import annotations

import torch

from stages.train_head.heads.keyword_selector import KeywordSelector


def test_one_logit_per_token() -> None:
    torch.manual_seed(0)
    selector, hidden = KeywordSelector(5), torch.randn(4, 5)
    expected = [sum(w * x for w, x in zip(selector.weight[0], row, strict=True)) + selector.bias[0] for row in hidden]
    torch.testing.assert_close(selector(hidden), torch.stack(expected))
    assert selector(hidden[:0]).shape == (0,)
