"""A tiny checkpoint of random weights for every LMM family that extraction supports.

Each is a folder that plain `from_pretrained` loads: the family's own configuration, model, image processor and
processor at small sizes, with the embedded LMM's tokenizer plus the family's special tokens. What the models say means
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.families.dynamic import gemma4, glm4v, lfm2_vl, qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from benchmarks.families.llava import llava, llava_next, llava_onevision, mistral3, pixtral, vipllava
from benchmarks.families.parts import Made
from benchmarks.families.square import deepseek_vl, deepseek_vl_hybrid, gemma3, janus, paligemma
from benchmarks.families.tiled import aya_vision, cohere2_vision, idefics3, internvl, llama4, molmo2, smolvlm
from stages.extract.capture import text_decoder

FAMILIES: Final[dict[str, Callable[[], Made]]] = {
    "llava": llava,
    "llava-mistral": lambda: llava("mistral"),
    "llava-phi3": lambda: llava("phi3"),
    "llava-granite": lambda: llava("granite", attention_multiplier=0.2),  # scores are not scaled by the root of d
    "vipllava": vipllava,
    "llava-next-mistral": llava_next,
    "llava-next-vicuna": lambda: llava_next("llama"),
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "qwen3.5-vl": qwen3_5,
    "glm4v": glm4v,
    "internvl": internvl,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gemma4-bidirectional": lambda: gemma4(use_bidirectional_attention="vision", attention_k_eq_v=True),
    "paligemma": lambda: paligemma("gemma"),
    "paligemma2": paligemma,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "deepseek-vl": deepseek_vl,
    "deepseek-vl-hybrid": deepseek_vl_hybrid,
    "janus": janus,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "aya-vision": aya_vision,
    "cohere2-vision": cohere2_vision,
    "llama4": llama4,
    "molmo2": molmo2,
    "lfm2-vl": lfm2_vl,
}

SHARPER: Final = 4.0  # initial weights give almost even attention, in which a wrong row would be hard to see


def save_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a family (weights of a fixed seed) and return its folder."""
    config, processor = FAMILIES[name]()
    torch.manual_seed(seed)
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projection begins at zero: no image would be seen
            torch.nn.init.normal_(parameter, std=0.1)
    for key, parameter in text_decoder(model).named_parameters():
        if any(part in key for part in ("q_proj.w", "k_proj.w", "qkv_proj.w", "att_proj.w")):
            parameter.data.mul_(SHARPER)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
