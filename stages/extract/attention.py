"""Attention rows of chosen words, computed beside SDPA through transformers' attention interface.

The frozen LMM runs its plain SDPA forward. For the layers of its text decoder, the rows of the object words are
computed a second time from the same queries and keys: softmax over all keys, cut to the image's columns, merged over
the words of each object, all on the device. Nothing of size L x L is kept, no eager attention, no `output_attentions`.
Where SDPA can not run the model (soft-capped scores, attention sinks), a layer runs the model's own eager code and the
rows are cut from that, one layer at a time.

Shapes: B samples, L padded input length, R rows (object tokens) per sample padded to the batch's most, K objects of the
batch, M layers, A of them with attention (all, but for hybrids), N heads, P image columns padded to the batch's most, d
width of the hidden states.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from manifests.errors import ModelError

# transformers looks for "flash", "sdpa", "flex" and "paged" inside the name: it must hold none of them
IMPLEMENTATION = "attention_rows"
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
class Captured:
    """What one forward pass gives, on the model's device.

    attention: float32 [K, A, N, P], softmax rows over all keys, merged over each object's words; 0 past a sample's own
    columns.
    hidden: [T, M, d] in the model's dtype, T object tokens in order: the outputs of the M layers, the last one after
    the final norm.  answer_hidden: [A, d], the last layer (after the final norm) at every answer token, sample by
    sample.
    """

    attention: Tensor
    hidden: Tensor
    answer_hidden: Tensor


class _Pass:
    """Index tensors of one forward pass, and the maps that the layers fill in."""

    def __init__(self, samples: Sequence[WordRows], layers: int, heads: int, device: torch.device, merge: Merge):
        rows = [[p for positions in s.objects for p in positions] for s in samples]
        owners = [[k for k, positions in enumerate(s.objects) for _ in positions] for s in samples]
        first = [0]
        for s in samples:
            first.append(first[-1] + len(s.objects))
        self.merge, self.objects = merge, first[-1]
        self.rows, self.valid = (x.to(device) for x in _padded(rows))
        owner = torch.tensor([first[b] + k for b, numbers in enumerate(owners) for k in numbers], dtype=torch.long)
        self.owner = owner.to(device)
        self.words = torch.bincount(self.owner, minlength=self.objects).to(device)
        self.columns, self.is_column = (x.to(device) for x in _padded([list(s.columns) for s in samples]))
        self.maps = torch.zeros(self.objects, layers, heads, self.columns.shape[1], device=device)
        self.seen: set[int] = set()

    def select(self, states: Tensor) -> Tensor:
        """[B, L, d] -> [T, d]: the states at the object tokens."""
        index = self.rows[..., None].expand(-1, -1, states.shape[-1])
        return states.gather(1, index)[self.valid]

    def put(self, layer: int, weights: Tensor) -> None:
        """Merge the rows [B, N, R, P] of a layer over the words of each object."""
        tokens = (weights * self.is_column[:, None, None]).transpose(1, 2)[self.valid].float()
        index = self.owner[:, None, None].expand_as(tokens)
        out = torch.zeros(self.objects, *tokens.shape[1:], device=tokens.device)
        if self.merge == "mean":
            out.scatter_add_(0, index, tokens).div_(self.words[:, None, None])
        else:
            out.scatter_reduce_(0, index, tokens, "amax")  # softmax weights are >= 0, the initial value
        self.maps[:, layer] = out
        self.seen.add(layer)


def _padded(lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """int64 [B, most], zeros behind each list, and bool [B, most]: where the lists are."""
    length = torch.tensor([len(x) for x in lists])
    most = int(length.max())
    values = torch.tensor([[*x, *[0] * (most - len(x))] for x in lists], dtype=torch.long).view(len(lists), most)
    return values, torch.arange(most) < length[:, None]


_ACTIVE: WeakKeyDictionary[nn.Module, tuple[int, _Pass]] = WeakKeyDictionary()
_EAGER: WeakSet[nn.Module] = WeakSet()  # modules of models that transformers loads with eager attention


def _rows_of_mask(mask: Tensor | None, rows: Tensor, length: int) -> Tensor:
    """Which keys each row may see: bool, or additive as the model made it, [B, 1, R, L]."""
    if mask is None:  # SDPA's causal flag
        return (torch.arange(length, device=rows.device) <= rows[..., None])[:, None]
    mask = mask.expand(rows.shape[0], -1, -1, -1)[..., :length]
    return mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, length))


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, rows: Tensor, columns: Tensor
) -> Tensor:
    """softmax(q k^T * scaling + mask) for chosen rows and columns, in float32.

    query: [B, N, L, d], key: [B, N / groups, L, d], mask: bool or additive [B|1, 1|N, L, L] or None (causal),
    rows: int64 [B, R], columns: int64 [B, P].  Returns float32 [B, N, R, P].
    """
    batch, heads, _, width = query.shape
    groups, count = heads // key.shape[1], rows.shape[1]
    chosen = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width)).float()
    chosen = chosen.reshape(batch, key.shape[1], groups * count, width)
    scores = (chosen @ key.float().transpose(-1, -2)).view(batch, heads, count, -1) * scaling
    allowed = _rows_of_mask(mask, rows, key.shape[2])
    scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    total = scores.logsumexp(-1, keepdim=True)
    return (scores.gather(3, columns[:, None, None].expand(-1, heads, count, -1)) - total).exp_()


def _forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
):
    """The attention function that transformers calls: capture, then SDPA exactly as it would have run."""
    active = _ACTIVE.get(module)
    if active and key.shape[2] != query.shape[2]:
        raise ModelError(f"{type(module).__name__} attends to a cache or to other states: its rows can not be captured")
    if module in _EAGER or any(kwargs.get(name) is not None for name in NOT_IN_SDPA):
        return _eager(module, query, key, value, attention_mask, active, **kwargs)
    if active:
        layer, run = active
        with torch.no_grad():
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            run.put(layer, attention_rows(query, key, attention_mask, scaling, run.rows, run.columns))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


NOT_IN_SDPA = ("softcap", "s_aux")  # soft-capped scores (Gemma 2), attention sinks (gpt-oss)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    active: tuple[int, _Pass] | None,
    **kwargs: Any,
):
    """The model's own eager attention of this layer, and the rows cut from its weights; these are not kept."""
    module_of_class = (sys.modules[c.__module__] for c in type(module).__mro__)
    forward = next((f for m in module_of_class if (f := getattr(m, "eager_attention_forward", None))), None)
    if forward is None:
        raise ModelError(f"{type(module).__name__} has no eager attention of its own: its rows can not be captured")
    length = query.shape[2]
    if mask is None:  # SDPA's causal flag
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()[None, None]
    if mask.dtype == torch.bool:  # eager adds its mask to the scores
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = zero.masked_fill(~mask, torch.finfo(query.dtype).min)
    out, weights = forward(module, query, key, value, mask, **kwargs)
    if active:
        layer, run = active
        with torch.no_grad():
            heads, keys = weights.shape[1], weights.shape[3]
            rows = weights.gather(2, run.rows[:, None, :, None].expand(-1, heads, -1, keys))
            run.put(layer, rows.gather(3, run.columns[:, None, None].expand(-1, heads, rows.shape[2], -1)))
    return out, None


AttentionInterface.register(IMPLEMENTATION, _forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # unregistered, every mask would silently become None


class AttentionCapture:
    """Wraps a frozen Hugging Face LMM whose text decoder attends to image tokens through self-attention.

    Raises ModelError for models that read the image by cross-attention only, or that bypass the attention interface.
    """

    def __init__(self, model: Any, merge: Merge = "mean"):
        self.model = model.eval().requires_grad_(False)
        self.merge: Merge = merge
        self.config = self.model.config.get_text_config(decoder=True)
        self.decoder = self._find_decoder()
        self.layers = list(self._layers_of(self.decoder) or ())
        found = [self._attention_of(i, layer) for i, layer in enumerate(self.layers)]
        self.attentions = [module for module in found if module is not None]
        if not self.attentions:
            raise ModelError(f"{type(model).__name__}: no layer with self-attention was found")
        self.baseline: str = self.config._attn_implementation
        """What the model was loaded with (sdpa; eager where sdpa can not run it): its logits stay, bit for bit."""
        name = next((k for k in self.model.config.sub_configs if getattr(self.model.config, k) is self.config), "")
        self.model.set_attn_implementation({name: IMPLEMENTATION})
        if self.config._attn_implementation != IMPLEMENTATION:  # transformers only warns
            raise ModelError(f"{type(model).__name__} does not use transformers' attention interface")
        if self.baseline == "eager":
            _EAGER.update(self.attentions)

    @property
    def channels(self) -> int:
        """C = A * N, attention maps per object."""
        return len(self.attentions) * self.config.num_attention_heads

    @staticmethod
    def _layers_of(module: nn.Module) -> nn.ModuleList | None:
        layers = getattr(module, "layers", getattr(module, "blocks", None))
        return layers if isinstance(layers, nn.ModuleList) else None

    def _find_decoder(self) -> Any:
        """The smallest module that owns the text config and a list of layers."""
        found = [
            m
            for m in self.model.modules()
            if getattr(m, "config", None) is self.config and self._layers_of(m) is not None
        ]
        if not found:
            raise ModelError(f"{type(self.model).__name__}: no text decoder with a list of layers was found")
        return found[-1]

    def _attention_of(self, index: int, layer: nn.Module) -> nn.Module | None:
        """The self-attention of a layer; None for the other layers of a hybrid (convolutions, linear attention)."""
        found = [
            m
            for m in layer.modules()
            if getattr(m, "layer_idx", None) == index
            and getattr(m, "config", None) is self.config
            and any(hasattr(m, name) for name in ("q_proj", "qkv_proj", "att_proj", "q_b_proj"))
        ]
        if any("cross" in type(m).__name__.lower() for m in found):
            raise ModelError(
                f"{type(self.model).__name__} reads the image by cross-attention: it has no attention prior"
            )
        if len(found) > 1:
            raise ModelError(f"{type(self.model).__name__}, layer {index}: no single self-attention module was found")
        return found[0] if found else None

    @torch.no_grad()
    def run(self, inputs: dict[str, Tensor], samples: Sequence[WordRows]) -> Captured:
        """One forward pass without logits. `inputs` as the model takes them, one `WordRows` per sample of the batch."""
        device = next(self.decoder.parameters()).device
        run = _Pass(samples, len(self.attentions), self.config.num_attention_heads, device, self.merge)
        states: list[Tensor | None] = [None] * (len(self.layers) - 1)

        def keep(layer: int):
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                states[layer] = run.select(output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(self.layers[:-1])]
        for i, module in enumerate(self.attentions):
            _ACTIVE[module] = (i, run)
        try:
            last = self.model.model(**inputs, use_cache=False).last_hidden_state
        finally:
            for module in self.attentions:
                del _ACTIVE[module]
            for handle in handles:
                handle.remove()
        if len(run.seen) != len(self.attentions):
            raise ModelError(
                f"captured {len(run.seen)} of {len(self.attentions)} layers of {type(self.model).__name__}"
            )
        hidden = torch.stack([*(s for s in states if s is not None), run.select(last)], 1)
        answer = torch.cat([last[b, list(s.answer)] for b, s in enumerate(samples)])
        return Captured(attention=run.maps, hidden=hidden, answer_hidden=answer)
