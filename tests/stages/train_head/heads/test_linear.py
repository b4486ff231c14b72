from __future__ import annotations

import pytest
import torch

from stages.train_head.heads.linear import LinearConfig, LinearHead
from tests.stages.train_head.heads.batches import SHAPE, make_batch


def test_it_is_the_weighted_sum_of_the_upsampled_maps() -> None:
    """Each map over its own mean, upsampled one by one, times its weight; then the bias."""
    head, batch = LinearHead(SHAPE, LinearConfig(input_size=16)), make_batch()
    torch.nn.init.normal_(head.maps.weight)
    torch.nn.init.constant_(head.maps.bias, 0.7)
    coarse = head(batch).coarse
    weights = head.weights_by_map()
    for k, maps in enumerate(batch.attention):
        expected = torch.full((16, 16), 0.7)
        for weight, each in zip(weights, maps, strict=True):
            large = torch.nn.functional.interpolate(
                (each / each.mean())[None, None], size=16, mode="bilinear", align_corners=False
            )
            expected += weight * large[0, 0]
        torch.testing.assert_close(coarse[k], expected, atol=1e-4, rtol=1e-5)


def test_the_scale_of_a_map_does_not_matter_and_a_finer_grid_is_kept() -> None:
    head = LinearHead(SHAPE, LinearConfig(input_size=4))
    torch.nn.init.normal_(head.maps.weight)
    batch = make_batch()
    before = head(batch).coarse
    batch.attention *= torch.rand(SHAPE.channels)[:, None, None] + 0.1
    torch.testing.assert_close(head(batch).coarse, before, atol=1e-4, rtol=1e-4)
    assert before.shape[-1] == head.coarse_size(6) == 6


def test_it_finds_the_map_that_matters() -> None:
    """Objects are where map 4 is high, and nowhere else says so: its weight becomes the largest by far."""
    torch.manual_seed(0)
    head, batch = LinearHead(SHAPE, LinearConfig(input_size=6)), make_batch()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    truth = (batch.attention[:, 4] > batch.attention[:, 4].mean()).float()
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(head(batch).coarse, truth).backward()
        optimizer.step()
    weights = head.weights_by_map()
    assert weights.shape == (SHAPE.channels,) and weights.argmax() == 4
    assert weights[4] > 5 * weights[torch.arange(SHAPE.channels) != 4].abs().max()


def test_an_impossible_size_is_named() -> None:
    with pytest.raises(ValueError, match="input_size"):
        LinearConfig(input_size=-1)
