"""The batched two-way transformer against segment_anything's own, called with one object's tokens at a time.

Matrix: 0 to 5 prompts per object beside 3 learned tokens, one and three layers; float64, outputs and all gradients.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import TwoWayTransformer

from stages.train_head.heads.two_way import two_way

CHANNELS, SIDE, LEARNED = 8, 3, 3


def parts(counts: list[int], depth: int = 2) -> tuple[TwoWayTransformer, list[torch.Tensor], torch.Tensor]:
    """A transformer, [image, position, tokens], and which tokens are real; on padding there are large numbers."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=depth, embedding_dim=CHANNELS, num_heads=2, mlp_dim=16).double()
    image = torch.randn(len(counts), CHANNELS, SIDE, SIDE, dtype=torch.float64)
    position = torch.randn(1, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    tokens = torch.randn(len(counts), LEARNED + max(counts), CHANNELS, dtype=torch.float64)
    real = torch.arange(tokens.shape[1]) < LEARNED + torch.tensor(counts)[:, None]
    tokens[~real] = 1e3
    return transformer, [image, position, tokens], real


def one_by_one(
    transformer: TwoWayTransformer, inputs: list[torch.Tensor], real: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """segment_anything's forward pass of every object alone, without its padding."""
    image, position, tokens = inputs
    results = []
    for k, mine in enumerate(real):
        state, pixels = transformer(image[k : k + 1], position, tokens[k : k + 1, : int(mine.sum())])
        results.append((state[0], pixels[0]))
    return results


@pytest.mark.parametrize("depth", [1, 3])
def test_equals_segment_anything_object_by_object_with_gradients(depth: int) -> None:
    transformer, inputs, real = parts([2, 0, 5, 1, 3, 4], depth)
    leaves = [x.requires_grad_() for x in inputs] + list(transformer.parameters())
    state, pixels = two_way(transformer, inputs[0], inputs[1], inputs[2], real)
    expected = one_by_one(transformer, inputs, real)
    expected_state = torch.cat([state for state, _ in expected])
    expected_pixels = torch.stack([pixels for _, pixels in expected])
    torch.testing.assert_close(state[real], expected_state, atol=1e-10, rtol=0)
    torch.testing.assert_close(pixels, expected_pixels, atol=1e-10, rtol=0)
    along, across = torch.randn_like(expected_state), torch.randn_like(expected_pixels)
    actual = torch.autograd.grad((state[real] * along).sum() + (pixels * across).sum(), leaves)
    wanted = torch.autograd.grad((expected_state * along).sum() + (expected_pixels * across).sum(), leaves)
    for got, should in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, should, atol=1e-9 * max(1.0, should.abs().max().item()), rtol=0)
    assert not actual[2][~real].any()  # nothing is learned from padding


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_any_numbers_of_tokens(counts: list[int]) -> None:
    transformer, inputs, real = parts(counts)
    state, pixels = two_way(transformer, inputs[0], inputs[1], inputs[2], real)
    for k, (own_state, own_pixels) in enumerate(one_by_one(transformer, inputs, real)):
        torch.testing.assert_close(state[k, : len(own_state)], own_state, atol=1e-10, rtol=0)
        torch.testing.assert_close(pixels[k], own_pixels, atol=1e-10, rtol=0)
    if real.all():
        unmasked, _ = two_way(transformer, inputs[0], inputs[1], inputs[2])
        torch.testing.assert_close(unmasked, state, atol=1e-10, rtol=0)
