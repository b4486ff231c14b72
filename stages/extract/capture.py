"""One forward pass of a frozen LMM, and what it said: the object words' attention on the image, and hidden states.

Shapes: K objects of the batch, M layers, A of them with attention (all, but for hybrids), N heads, P image columns
padded to the batch's most, T object tokens, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from manifests.errors import ModelError
from stages.extract.attention import ACTIVE, EAGER, IMPLEMENTATION, Merge, RowsPass, WordRows, capture_beside
from stages.extract.past import Past
from stages.extract.repair import repaired


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """What one forward pass gives, on the device of the model's last layer.

    attention: float32 [K, A, N, P], softmax rows over all keys, merged over each object's words; 0 past a sample's own
    columns.
    hidden: [T, M, d] in the model's dtype, T object tokens in order: the outputs of the M layers, the last one after
    the final norm.  answer_hidden: [answer tokens, d], the last layer (after the final norm) at every answer token,
    sample by sample.
    """

    attention: Tensor
    hidden: Tensor
    answer_hidden: Tensor


def _layers_of(module: nn.Module) -> nn.ModuleList | None:
    layers = getattr(module, "layers", getattr(module, "blocks", None))
    return layers if isinstance(layers, nn.ModuleList) else None


def text_decoder(model: Any) -> Any:
    """The smallest module of an LMM that owns the text config and a list of layers."""
    config = model.config.get_text_config(decoder=True)
    found = [m for m in model.modules() if getattr(m, "config", None) is config and _layers_of(m) is not None]
    if not found:
        raise ModelError(f"{type(model).__name__}: no text decoder with a list of layers was found")
    return found[-1]


class AttentionCapture:
    """Wraps a frozen Hugging Face LMM whose text decoder attends to image tokens through self-attention.

    Raises ModelError for models that read the image by cross-attention only, or that bypass the attention interface.
    """

    def __init__(self, model: Any, merge: Merge = "mean"):
        self.model = repaired(model.eval().requires_grad_(False))
        self.merge: Merge = merge
        self.config = self.model.config.get_text_config(decoder=True)
        self.decoder = text_decoder(self.model)
        self.layers = list(_layers_of(self.decoder) or ())
        found = [self._attention_of(i, layer) for i, layer in enumerate(self.layers)]
        self.attentions = [module for module in found if module is not None]
        if not self.attentions:
            raise ModelError(f"{type(model).__name__}: no layer with self-attention was found")
        self.baseline: str = self.config._attn_implementation
        """What the model was loaded with (sdpa; eager where sdpa can not run it): its logits stay, bit for bit."""
        if is_flash_attention_requested(self.config):
            capture_beside(self.baseline)
            return
        name = next((k for k in self.model.config.sub_configs if getattr(self.model.config, k) is self.config), "")
        self.model.set_attn_implementation({name: IMPLEMENTATION})
        if self.config._attn_implementation != IMPLEMENTATION:  # transformers only warns
            raise ModelError(f"{type(model).__name__} does not use transformers' attention interface")
        if self.baseline == "eager":
            EAGER.update(self.attentions)

    @property
    def channels(self) -> int:
        """C = A * N, attention maps per object."""
        return len(self.attentions) * self.config.num_attention_heads

    @property
    def _body(self) -> Callable[..., Any]:
        """The model without its logits; with those of one token where that is no module of its own (Llama 4)."""
        return getattr(self.model, "model", None) or partial(self.model, logits_to_keep=1)

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
    def run(self, inputs: dict[str, Tensor], samples: Sequence[WordRows], past: Past | None = None) -> Captured:
        """One forward pass without logits. `inputs` as the model takes them, one `WordRows` per sample of the batch.

        past: of the one sample's prompt; `inputs` are then what follows it, `samples` all the same of the whole input.
        """
        run = RowsPass(samples, self.merge, len(past.ids) if past else 0)
        more = past.inputs(inputs["input_ids"].shape[1]) if past else {"use_cache": False}
        run.on(next(iter(inputs.values())).device)  # before the device has anything to do
        states: list[Tensor | None] = [None] * (len(self.layers) - 1)

        def keep(layer: int):
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                states[layer] = run.select(output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(self.layers[:-1])]
        outputs: list[Any] = []
        handles.append(self.decoder.register_forward_hook(lambda _module, _args, output: outputs.append(output)))
        try:
            with self._first_pass(run):
                self._body(**inputs, **more)
        finally:
            for handle in handles:
                handle.remove()
        last = outputs[0].last_hidden_state
        hidden = torch.stack([*(s.to(last.device) for s in states if s is not None), run.select(last)], 1)
        return Captured(attention=self._stacked(run, last.device), hidden=hidden, answer_hidden=run.answer(last))

    @contextmanager
    def beside(self, samples: Sequence[WordRows]) -> Iterator[list[Tensor]]:
        """Capture beside whatever runs the model inside the block: the first pass of its text decoder, and no other.

        For `generate` that is the pass over the whole prompt, so `samples` may ask for rows of the prompt only; the
        passes after it, a token each, run as they would. Gives a list that holds `Captured.attention` after the block.
        Raises ModelError where a layer was not captured, or there was no pass over a whole prompt.
        """
        run = RowsPass(samples, self.merge)
        found: list[Tensor] = []
        with self._first_pass(run):
            yield found
        found.append(self._stacked(run, run.maps[len(self.attentions) - 1].device))

    @contextmanager
    def _first_pass(self, run: RowsPass) -> Iterator[None]:
        """The decoder's first forward pass inside the block leaves every layer's rows in `run`."""

        def stop(*_: Any) -> None:
            for module in self.attentions:
                ACTIVE.pop(module, None)

        handle = self.decoder.register_forward_hook(stop)
        for i, module in enumerate(self.attentions):
            ACTIVE[module] = (i, run)
        try:
            yield
        finally:
            stop()
            handle.remove()
        if len(run.maps) != len(self.attentions):
            raise ModelError(
                f"{type(self.model).__name__} goes around transformers' attention interface: {len(run.maps)} of its "
                f"{len(self.attentions)} layers were captured"
            )

    def _stacked(self, run: RowsPass, device: torch.device) -> Tensor:
        """[K, A, N, P]: the maps of all layers, on one device."""
        return torch.stack([run.maps[i].to(device) for i in range(len(self.attentions))], 1)
