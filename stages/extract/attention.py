"""Attention rows of chosen words, computed beside the LMM's own attention through transformers' attention interface.

The frozen LMM runs its plain forward (SDPA, or flash attention where it was loaded with it). For the layers of its text
decoder, the rows of the object words are computed a second time from the same queries and keys: softmax over all keys,
cut to the image's columns, merged over the words of each object, all on the layer's device. Nothing of size L x L is
kept, no eager attention, no `output_attentions`. Where SDPA can not run the model (soft-capped scores, attention
sinks), a layer runs the model's own eager code and the rows are cut from that, one layer at a time.

Shapes: B samples, L padded input length, R rows (object tokens) per sample padded to the batch's most, K objects of the
batch, W tokens of an object padded to the batch's most, T object tokens, N heads, P image columns padded to the batch's
most, d width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from manifests.errors import ModelError

# transformers looks for "flash", "sdpa", "flex" and "paged" inside the name: it must hold none of them
IMPLEMENTATION: Final = "attention_rows"
NOT_IN_SDPA: Final = ("softcap", "s_aux")  # soft-capped scores (Gemma 2), attention sinks (gpt-oss)
Merge = Literal["mean", "max"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WordRows:
    """Where the object words and the image are in one sample's input ids.

    objects: for each object the positions of its tokens.  columns: the positions of the image, view by view, row-major.
    answer: positions of every token of the answer.
    """

    objects: Sequence[Sequence[int]]
    columns: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    """Which rows and columns of a batch are wanted, on one device. All int64 but for `is_column`: no layer has to wait
    for the host to learn a size."""

    rows: Tensor
    """[B, R]: positions, 0 behind a sample's own."""
    columns: Tensor
    """[B, P]: positions, and `is_column` bool [B, P], where there are that many."""
    is_column: Tensor
    sample: Tensor
    """[T], like `slot` and `position`: where the object tokens are, rows[sample, slot] = position (after a past: minus
    its length)."""
    slot: Tensor
    position: Tensor
    token: Tensor
    """[K, W]: the tokens of every object, numbers in [0, T), and `is_token` bool [K, W], where there are that many."""
    is_token: Tensor
    answer_sample: Tensor
    """[answer tokens], like `answer_position`: where every answer token is, counted as `position`."""
    answer_position: Tensor


class RowsPass:
    """What one forward pass is asked for, and the maps that its layers fill in, each on its layer's device.

    start: position of the pass's first token; the keys of those before it come from a cache. Rows and answers are of
    tokens from there on, columns of any.
    """

    def __init__(self, samples: Sequence[WordRows], merge: Merge, start: int = 0):
        rows, is_row = _padded([[p for positions in s.objects for p in positions] for s in samples])
        columns, is_column = _padded([list(s.columns) for s in samples])
        sample, slot = is_row.nonzero(as_tuple=True)
        sizes = [len(positions) for s in samples for positions in s.objects]
        firsts = [sum(sizes[:k]) for k in range(len(sizes))]
        token, is_token = _padded([list(range(first, first + n)) for first, n in zip(firsts, sizes, strict=True)])
        answer, is_answer = _padded([list(s.answer) for s in samples])
        answer_sample, answer_slot = is_answer.nonzero(as_tuple=True)
        self.merge, self.start = merge, start
        self.first_row = min((p for s in samples for positions in s.objects for p in positions), default=0)
        self._host = {
            "rows": rows, "columns": columns, "is_column": is_column, "sample": sample, "slot": slot,
            "position": rows[sample, slot] - start, "token": token, "is_token": is_token,
            "answer_sample": answer_sample, "answer_position": answer[answer_sample, answer_slot] - start,
        }  # fmt: skip
        self._on: dict[torch.device, _Index] = {}
        self.maps: dict[int, Tensor] = {}
        """float32 [K, N, P] of every layer that has run."""

    def on(self, device: torch.device) -> _Index:
        """The indices on a layer's device: models larger than one GPU have several."""
        if device not in self._on:
            host = {name: x.pin_memory() if device.type == "cuda" else x for name, x in self._host.items()}
            self._on[device] = _Index(**{name: x.to(device, non_blocking=True) for name, x in host.items()})
        return self._on[device]

    def select(self, states: Tensor) -> Tensor:
        """[B, L, d] -> [T, d]: the states at the object tokens."""
        index = self.on(states.device)
        return states[index.sample, index.position]

    def answer(self, states: Tensor) -> Tensor:
        """[B, L, d] -> [answer tokens, d], sample by sample."""
        index = self.on(states.device)
        return states[index.answer_sample, index.answer_position]

    def put(self, layer: int, weights: Tensor) -> None:
        """Merge the rows [B, N, R, P] of a layer over the words of each object.

        Word by word in order, not scattered: a GPU would add in any order, and the last bit would change from run to
        run.
        """
        index = self.on(weights.device)
        tokens = (weights * index.is_column[:, None, None])[index.sample, :, index.slot].float()
        words = tokens[index.token].masked_fill_(~index.is_token[..., None, None], 0.0)  # [K, W, N, P]
        if self.merge == "mean":
            self.maps[layer] = words.sum(1) / index.is_token.sum(1)[:, None, None]
        else:
            self.maps[layer] = words.amax(1)  # softmax weights are >= 0


def _padded(lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """int64 [B, most], zeros behind each list, and bool [B, most]: where the lists are."""
    length = torch.tensor([len(x) for x in lists])
    most = int(length.max())
    values = torch.tensor([[*x, *[0] * (most - len(x))] for x in lists], dtype=torch.long).view(len(lists), most)
    return values, torch.arange(most) < length[:, None]


ACTIVE: WeakKeyDictionary[nn.Module, tuple[int, RowsPass]] = WeakKeyDictionary()
"""Attention modules whose rows are wanted now: number of the layer, and the pass."""
EAGER: WeakSet[nn.Module] = WeakSet()
"""Attention modules of models that transformers loads with eager attention."""


def _rows_of_mask(mask: Tensor | None, rows: Tensor, first: int, length: int, window: int | None) -> Tensor:
    """Which keys each row may see: bool, or additive as the model made it, [B, 1, R, L].

    mask: [B|1, 1|N, L - first, L]; or what flash attention takes, [B, L] (1 for keys that are no padding) or None, both
    causal and of a sliding `window`.
    """
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(rows.shape[0], -1, -1, -1)[..., :length]
        return mask.gather(2, (rows - first).clamp(min=0)[:, None, :, None].expand(-1, mask.shape[1], -1, length))
    key, row = torch.arange(length, device=rows.device), rows[..., None]
    allowed = key <= row if window is None else (key <= row) & (row - key < window)
    return (allowed if mask is None else allowed & mask[:, None].bool())[:, None]


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    rows: Tensor,
    columns: Tensor,
    window: int | None = None,
    first: int = 0,
) -> Tensor:
    """softmax(q k^T * scaling + mask) for chosen rows and columns, in float32.

    query: [B, N, L - first, d], of the positions from `first` on, key: [B, N / groups, L, d], mask: bool or additive
    [B|1, 1|N, L - first, L], or bool [B, L] or None (causal, in a sliding `window` of that many keys), rows: int64
    [B, R], columns: int64 [B, P].
    Returns float32 [B, N, R, P].
    """
    batch, heads, _, width = query.shape
    groups, count = heads // key.shape[1], rows.shape[1]
    # padding of rows is position 0, which may lie before the first query
    chosen = query.gather(2, (rows - first).clamp(min=0)[:, None, :, None].expand(-1, heads, -1, width)).float()
    chosen = chosen.reshape(batch, key.shape[1], groups * count, width)
    scores = (chosen @ key.float().transpose(-1, -2)).view(batch, heads, count, -1) * scaling
    allowed = _rows_of_mask(mask, rows, first, key.shape[2], window)
    scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    total = scores.logsumexp(-1, keepdim=True)
    return (scores.gather(3, columns[:, None, None].expand(-1, heads, count, -1)) - total).exp_()


def _capture(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, window: int | None, scaling: float | None
) -> None:
    """Compute the rows that a pass wants of this module, if one does."""
    if active := ACTIVE.get(module):
        layer, run = active
        index = run.on(query.device)
        with torch.no_grad():
            scaling = scaling or query.shape[-1] ** -0.5
            first = key.shape[2] - query.shape[2]
            run.put(layer, attention_rows(query, key, mask, scaling, index.rows, index.columns, window, first))


def _forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
):
    """The attention function that transformers calls: capture, then SDPA exactly as it would have run."""
    _require_rows(module, query, key)
    if module in EAGER or any(kwargs.get(name) is not None for name in NOT_IN_SDPA):
        return _eager(module, query, key, value, attention_mask, **kwargs)
    _capture(module, query, key, attention_mask, None, kwargs.get("scaling"))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _require_rows(module: nn.Module, query: Tensor, key: Tensor) -> None:
    """The rows that are wanted must be among the queries, and the keys be those of the whole input.

    More or fewer keys than that before the first query: a cache that nobody spoke of, or one that lost keys.
    """
    if module not in ACTIVE:
        return
    first, run = key.shape[2] - query.shape[2], ACTIVE[module][1]
    if first == run.start:
        return
    # where later layers share their keys with earlier ones (Gemma 4), `generate` gives them a prompt's last token only
    if not getattr(module, "is_kv_shared_layer", False) or not run.start < first <= run.first_row:
        raise ModelError(f"{type(module).__name__} attends to a cache or to other states: its rows can not be captured")


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
    """The model's own eager attention of this layer, and the rows cut from its weights; these are not kept."""
    module_of_class = (sys.modules[c.__module__] for c in type(module).__mro__)
    forward = next((f for m in module_of_class if (f := getattr(m, "eager_attention_forward", None))), None)
    if forward is None:
        raise ModelError(f"{type(module).__name__} has no eager attention of its own: its rows can not be captured")
    count, first = query.shape[2], key.shape[2] - query.shape[2]
    if mask is None:  # SDPA's causal flag
        mask = torch.ones(count, first + count, dtype=torch.bool, device=query.device).tril_(first)[None, None]
    if mask.dtype == torch.bool:  # eager adds its mask to the scores
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = zero.masked_fill(~mask, torch.finfo(query.dtype).min)
    out, weights = forward(module, query, key, value, mask, **kwargs)
    if active := ACTIVE.get(module):
        layer, run = active
        index = run.on(weights.device)
        with torch.no_grad():
            heads, keys = weights.shape[1], weights.shape[3]
            rows = (index.rows - first).clamp(min=0)[:, None, :, None]
            rows = weights.gather(2, rows.expand(-1, heads, -1, keys))
            run.put(layer, rows.gather(3, index.columns[:, None, None].expand(-1, heads, rows.shape[2], -1)))
    return out, None


class _BesideFlash:
    """A flash attention function of transformers, and beside it the rows, masked as flash attention masks.

    It stays under its own name, because transformers makes the inputs of such functions by their name.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ):
        if module in ACTIVE:
            _require_rows(module, query, key)
            causal = kwargs.get("is_causal")
            if not (getattr(module, "is_causal", True) if causal is None else causal):
                raise ModelError(f"{type(module).__name__} is not causal under flash attention: give --attention sdpa")
            if any(kwargs.get(name) is not None for name in NOT_IN_SDPA):
                raise ModelError(f"{type(module).__name__} has soft-capped scores or sinks: give --attention auto")
            _capture(module, query, key, attention_mask, kwargs.get("sliding_window"), kwargs.get("scaling"))
        return self.function(module, query, key, value, attention_mask, **kwargs)


def capture_beside(name: str) -> None:
    """Let the flash attention implementation `name` capture, too; modules that are not in a pass run as before."""
    function = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(function, _BesideFlash):
        AttentionInterface.register(name, _BesideFlash(function))


AttentionInterface.register(IMPLEMENTATION, _forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # unregistered, every mask would silently become None
