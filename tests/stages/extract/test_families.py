"""Every LMM family, tiny and of random weights: captured rows are its own eager attention's, logits its baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, MllamaConfig

from benchmarks.families import FAMILIES, save_family
from benchmarks.family_inputs import family_inputs
from benchmarks.parity import compare_family
from manifests.errors import ModelError
from stages.extract.capture import AttentionCapture


@pytest.mark.parametrize("name", FAMILIES)
def test_capture_is_exact(name: str) -> None:
    """Attention and hidden states within 1e-5 of eager's: mean and max, no padding, padding left and right, tiles.

    Hidden states of Gemma 4 reach 8 and more: 1e-5 of the largest.
    """
    found = compare_family(name)
    assert found["attention_max_abs_diff"] <= 1e-5
    assert found["hidden_max_abs_diff"] <= 1e-5 * max(1.0, found["hidden_max_abs"])
    assert found["batch_max_abs_diff"] <= 1e-5
    assert found["logits_bit_equal"] and found["weights_unchanged"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen3-vl", "lfm2-vl"])
def test_half_precision_rounds_and_nothing_else(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The first layer that attends has the same queries and keys as in eager attention, whose weights are rounded."""
    folder = save_family(name, tmp_path)
    auto: Any = AutoModelForImageTextToText
    capture = AttentionCapture(auto.from_pretrained(folder, dtype=dtype))
    inputs, rows = family_inputs(folder, capture.model.config, "right")
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    captured = capture.run(inputs, rows)
    eager = auto.from_pretrained(folder, dtype=dtype, attn_implementation={"text_config": "eager"}).eval()
    truth = next(layer for layer in eager.model(**inputs, output_attentions=True).attentions if layer is not None)
    assert captured.attention.dtype == torch.float32 and captured.hidden.dtype == dtype
    found = 0
    for b, sample in enumerate(rows):
        for positions in sample.objects:
            words = truth[b][:, positions][:, :, sample.columns].float().mean(1)
            difference = (captured.attention[found, 0, :, : len(sample.columns)] - words).abs()
            assert (difference <= 2 * torch.finfo(dtype).eps * words + 1e-6).all()
            found += 1


def test_a_model_that_reads_images_by_cross_attention_is_refused() -> None:
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "cross_attention_layers": [1, 3], "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "image_size": 28,
        "attention_heads": 2, "vision_output_dim": 32, "intermediate_layers_indices": [0],
    }  # fmt: skip
    model = AutoModelForImageTextToText.from_config(MllamaConfig(vision_config=vision, text_config=text))
    with pytest.raises(ModelError, match="cross-attention"):
        AttentionCapture(model)
