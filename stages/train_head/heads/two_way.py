"""SAM's two-way transformer for many objects at once, each with its own image and its own number of tokens.

The modules and their parameters are segment_anything's (`TwoWayTransformer`), only the forward pass is ours: padding is
masked wherever tokens are attended to, attention is torch's fused one, and the position, which is the same for all
images, is projected once instead of being added to every image.

Letters: K objects, L tokens of an object (learned ones, prompts, padding), P pixels of the embedding, Ce channels.
"""

from __future__ import annotations

from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional as F


def two_way(
    transformer: TwoWayTransformer, image: Tensor, position: Tensor, tokens: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward`, batched: -> tokens [K, L, Ce] and image [K, P, Ce] after it.

    `image`: float [K, Ce, e, e]; `position`: [1, Ce, e, e], of every image; `tokens`: [K, L, Ce], content and position
    in one, as SAM has them; `real`: bool [K, L], False on padding, None where there is none. Every object needs a real
    token. What comes back on padding is finite and means nothing.
    """
    pixels = image.flatten(2).transpose(1, 2).contiguous()
    place = position.flatten(2).transpose(1, 2)
    mask = None if real is None else real[:, None, None, :]  # [K, heads, queries, L] after broadcasting
    state = tokens
    for layer in transformer.layers:
        state, pixels = _layer(layer, state, tokens, pixels, place, mask)
    attention = transformer.final_attn_token_to_image
    found = _attend(attention, state + tokens, pixels, pixels, key_place=place)
    return transformer.norm_final_attn(state + found), pixels


def _layer(
    layer: TwoWayAttentionBlock, state: Tensor, tokens: Tensor, pixels: Tensor, place: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens to tokens, tokens to image, MLP, image to tokens: new `state` [K, L, Ce] and `pixels` [K, P, Ce]."""
    if layer.skip_first_layer_pe:  # SAM's first layer: the state is the tokens still, and there is no residual
        state = _attend(layer.self_attn, state, state, state, mask=mask)
    else:
        placed = state + tokens
        state = state + _attend(layer.self_attn, placed, placed, state, mask=mask)
    state = layer.norm1(state)
    found = _attend(layer.cross_attn_token_to_image, state + tokens, pixels, pixels, key_place=place)
    state = layer.norm2(state + found)
    state = layer.norm3(state + layer.mlp(state))
    attention = layer.cross_attn_image_to_token
    told = _attend(attention, pixels, state + tokens, state, query_place=place, mask=mask)
    return state, layer.norm4(pixels + told)


def _attend(
    attention: Attention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    query_place: Tensor | None = None,
    key_place: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`Attention.forward(queries + query_place, keys + key_place, values)`, [K, n, Ce] each; `mask`: False is unseen.

    W (x + p) = W x + W p: the sum would be one more image per object to make, and to keep for the backward pass.
    """
    q, k, v = attention.q_proj(queries), attention.k_proj(keys), attention.v_proj(values)
    if query_place is not None:
        q = q + F.linear(query_place, attention.q_proj.weight)
    if key_place is not None:
        k = k + F.linear(key_place, attention.k_proj.weight)
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.out_proj(found.transpose(1, 2).flatten(2))
