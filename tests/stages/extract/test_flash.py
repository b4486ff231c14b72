"""Rows beside flash attention: masked as it masks (no padding, causal, sliding windows), and nothing of it changed.

The kernel needs a GPU and the flash-attn package; where they are missing, a plain loop over the unpadded samples stands
in for the kernel alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlavaConfig, LlavaForConditionalGeneration, MistralConfig
from transformers.utils import is_flash_attn_2_available

from manifests.errors import ModelError
from stages.extract.attention import WordRows
from stages.extract.capture import AttentionCapture
from stages.extract.lmm import FrozenLMM
from stages.extract.past import past_of
from stages.extract.presets import resolve_lmm
from tests.stages.extract.truth import eager_truth

FLASH = "flash_attention_2"
GPU = torch.cuda.is_available() and is_flash_attn_2_available()


def unpadded(module, query, key, value, attention_mask, *, scaling, sliding_window=None, **_: Any):
    """What flash attention computes: every sample without its padding, causal, inside the window.

    Fewer queries than keys are the last ones.
    """
    batch, heads, length, _ = query.shape
    first = key.shape[2] - length
    key, value = (x.repeat_interleave(heads // key.shape[1], 1) for x in (key, value))
    out = torch.zeros_like(query)
    for b in range(batch):
        kept = torch.arange(first + length) if attention_mask is None else attention_mask[b].nonzero()[:, 0]
        asking = kept[kept >= first] - first
        scores = query[b][:, asking] @ key[b][:, kept].transpose(-1, -2) * scaling
        distance = torch.arange(len(kept))[:, None] - torch.arange(len(kept))
        seen = ((distance >= 0) & (distance < (sliding_window or first + length)))[-len(asking) :]
        out[b][:, asking] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[b][:, kept]
    return out.transpose(1, 2), None


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel where the machine has it, else the loop; and no wrapped function is left behind."""
    mapping = AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, FLASH, mapping[FLASH] if GPU else unpadded)
    yield


def model_with(attention: str, window: int | None) -> LlavaForConditionalGeneration:
    """Random weights, 4 query heads on 2 key heads, a 3 x 3 grid."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, sliding_window=window,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 24, "patch_size": 8, **vision},
        text_config=text, image_token_index=5, vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.config.text_config._attn_implementation = attention  # past the check that there is a GPU
    return model


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("window", [None, 6])
def test_rows_beside_flash_attention_equal_eager(side: str, window: int | None) -> None:
    device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
    generator = torch.Generator().manual_seed(1)
    ids, mask, rows = torch.zeros(2, 20, dtype=torch.long), torch.zeros(2, 20, dtype=torch.long), []
    for b, length in enumerate([20, 20] if side == "none" else [20, 16]):
        start = 20 - length if side == "left" else 0
        text = torch.randint(6, 64, (length,), generator=generator)
        text[1:10] = 5
        ids[b, start : start + length], mask[b, start : start + length] = text, 1
        columns = range(start + 1, start + 10)
        words = [[start + 11, start + 12], [start + 14]]
        rows.append(WordRows(objects=words, columns=columns, answer=range(start + 10, start + length)))
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
    inputs = {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()}
    attention, hidden, _ = eager_truth(model_with("eager", window).to(device, dtype), inputs, rows, "mean")
    model = model_with(FLASH, window).to(device, dtype)
    with torch.no_grad():
        plain = model.model(**inputs, use_cache=False).last_hidden_state
    capture = AttentionCapture(model)
    captured = capture.run(inputs, rows)
    tolerance = 0.02 if GPU else 1e-5
    assert capture.baseline == FLASH
    assert (captured.attention - attention.float()).abs().max() <= tolerance
    assert torch.equal(captured.attention == 0, attention == 0)  # a mask that is one key off would show here
    assert (captured.hidden - hidden).abs().max() <= tolerance * max(1, hidden.abs().max())
    assert attention.max() > 0.01
    with torch.no_grad():
        assert torch.equal(model.model(**inputs, use_cache=False).last_hidden_state, plain)


@pytest.mark.parametrize("window", [None, 16])
def test_rows_beside_flash_attention_on_top_of_a_past_equal_a_fresh_pass(window: int | None) -> None:
    """The window is wider than the prompt, and narrower than prompt and answer."""
    device, dtype = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
    model = model_with(FLASH, window).to(device, dtype)
    capture = AttentionCapture(model)
    ids = torch.tensor([[7, *[5] * 9, 8, 9, 10, *range(20, 27)]], device=device)
    rows = [WordRows(objects=[[14, 15], [19]], columns=range(1, 10), answer=range(13, 20))]
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    fresh = capture.run({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}, rows)
    with torch.no_grad():
        cache = model.model(input_ids=ids[:, :13], pixel_values=pixels, use_cache=True).cache
    positions = torch.arange(13, device=device)[None]
    past = past_of(capture.config, capture.attentions, cache, ids[0, :13].tolist(), positions)
    found = capture.run({"input_ids": ids[:, 13:]}, rows, past)
    tolerance = 0.02 if GPU else 1e-5
    assert (found.attention - fresh.attention).abs().max() <= tolerance
    assert (found.hidden - fresh.hidden).abs().max() <= tolerance * max(1, fresh.hidden.abs().max())
    assert (found.answer_hidden - fresh.answer_hidden).abs().max() <= tolerance * max(1, fresh.hidden.abs().max())
    assert (fresh.attention == 0).any() == (window is not None)


def test_what_flash_attention_would_mask_otherwise_is_refused() -> None:
    model = model_with(FLASH, None)
    capture = AttentionCapture(model)
    for module in capture.attentions:
        module.is_causal = False
    ids = torch.full((1, 12), 7)
    ids[0, 1:10] = 5
    rows = [WordRows(objects=[[11]], columns=range(1, 10), answer=range(10, 12))]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 24, 24)}
    with pytest.raises(ModelError, match="not causal under flash attention: give --attention sdpa"):
        capture.run(inputs, rows)


@pytest.mark.skipif(GPU, reason="flash attention is there")
def test_a_machine_without_flash_attention_says_so_in_one_line() -> None:
    with pytest.raises(ModelError, match="--attention flash_attention_2") as caught:
        FrozenLMM(replace(resolve_lmm("tiny"), attention=FLASH))
    assert "\n" not in str(caught.value)
