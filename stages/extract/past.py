"""What generation leaves of a prompt, its keys and values, and when an answer can be run on top of them.

Shapes: P tokens of the prompt, A of the answer, M layers, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

KEEPING: Final = (DynamicLayer, DynamicSlidingWindowLayer)
CHANGING: Final = ("dynamic", "longrope")  # rotary frequencies that follow the length of the input


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """A prompt as the text decoder knows it, on the devices of its layers. Nothing that runs on top of it changes it.

    ids: the prompt's P tokens.  layers: keys and values of each of the M layers, [1, key heads, P, d].
    next: int64 [1, 1] or, with multimodal rotary positions, [3, 1, 1]: the position of the token after the prompt.
    """

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    next: Tensor

    def inputs(self, count: int) -> dict[str, Any]:
        """What a model takes beside the ids of `count` tokens that follow the prompt; the cache is a new one."""
        positions = self.next + torch.arange(count, device=self.next.device)
        return {"cache": DynamicCache(self.layers), "position_ids": positions, "use_cache": True}


@contextmanager
def first_positions(decoder: nn.Module) -> Iterator[list[Any]]:
    """Gives a list that holds, after the block, the `position_ids` of the decoder's first pass in it (or None)."""
    found: list[Any] = []

    def keep(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(kwargs.get("position_ids"))

    handle = decoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def past_of(
    config: Any, attentions: Sequence[nn.Module], cache: Any, ids: Sequence[int], positions: Any
) -> Past | None:
    """The past of a prompt, or None where running an answer on top of it could be another thing than a fresh pass.

    config, attentions: the text decoder's, and its layers' self-attention.  cache: what generation of one answer ended
    with, the prompt unpadded.  ids: the prompt's.  positions: of the first pass. It is the same as a fresh pass only
    where

    - every layer has attention of its own, and a cache layer that still has every key. Convolutions and linear
      attention keep one state, which can not be taken back to the prompt's end; layers that share keys have no cache
      layer; one with a window (or chunk) forgets what left it, which the answer's first tokens may have to see;
    - the cache is of one sequence: those of beams were moved around;
    - the text decoder is causal: else the prompt's states would depend on the answer (a prefix that sees itself, of
      images or of PaliGemma's prompts, does not);
    - the rotary frequencies are the same for every length: else a longer input would turn the prompt's keys otherwise;
    - the positions of all of the prompt are known: the answer's go on behind the largest.
    """
    count, layers = len(ids), getattr(cache, "layers", [])
    exact = (
        type(cache) is DynamicCache
        and len(layers) == len(attentions) == config.num_hidden_layers
        and all(_keeps(layer, count) for layer in layers)
        and getattr(config, "is_causal", True)
        and not any(kind in CHANGING for kind in _rope_types(getattr(config, "rope_parameters", None)))
        and isinstance(positions, Tensor)
        and positions.shape[-1] == count
    )
    if not exact:
        return None
    if positions.shape[0] == 4:  # Qwen: those of the text, then the three that are turned by
        positions = positions[1:]
    following = torch.full_like(positions[..., :1], int(positions.max()) + 1)
    kept = tuple((layer.keys[..., :count, :], layer.values[..., :count, :]) for layer in layers)
    return Past(ids=tuple(ids), layers=kept, next=following)


def _keeps(layer: Any, count: int) -> bool:
    """Whether a cache layer has all keys of one sequence, the first `count` among them."""
    if type(layer) not in KEEPING or not layer.is_initialized:
        return False
    return layer.keys.shape[0] == 1 and layer.keys.shape[-2] == layer.get_seq_length() >= count


def _rope_types(parameters: Any) -> list[str]:
    """Every `rope_type` of a configuration, whose parameters may differ between kinds of layers."""
    if not isinstance(parameters, dict):
        return []
    own = [parameters["rope_type"]] if "rope_type" in parameters else []
    return own + [kind for value in parameters.values() for kind in _rope_types(value)]
