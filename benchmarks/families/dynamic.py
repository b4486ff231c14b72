"""Families whose grid follows the image: Qwen-VL, GLM-4V, LFM2-VL."""

from __future__ import annotations

from typing import Any

import transformers as hf

from benchmarks.families.parts import LLAMA, WIDTH, Made, mrope, tokenizer_with


def _qwen(config: Any, processor: Any, video: Any, vision: dict[str, Any], text: dict[str, Any], patch: int):
    tokens = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = tokenizer_with(**tokens)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    made = config(text_config={**LLAMA, **text}, vision_config=vision, **ids)
    images = hf.Qwen2VLImageProcessor(patch_size=patch, min_pixels=(4 * patch) ** 2, max_pixels=(12 * patch) ** 2)
    return made, processor(images, tokenizer, video)


def qwen2_vl() -> Made:
    vision = dict(depth=2, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=2)
    text = {"rope_parameters": mrope([1, 1, 2])}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor(), vision, text, 14)


def qwen2_5_vl() -> Made:
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, fullatt_block_indexes=[1],
        window_size=56,
    )  # fmt: skip
    text = {"rope_parameters": mrope([1, 1, 2])}
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor(), vision, text, 14)


def qwen3_vl() -> Made:
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    )  # fmt: skip
    text = {"head_dim": 8, "rope_parameters": mrope([2, 1, 1])}
    return _qwen(hf.Qwen3VLConfig, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor(), vision, text, 16)


def glm4v() -> Made:
    tokens = {
        "image_token": "<|image|>", "video_token": "<|video|>", "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>", "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, image_size=56
    )  # fmt: skip
    config = hf.Glm4vConfig(
        text_config={**LLAMA, "rope_parameters": mrope([1, 1, 2])},
        vision_config=vision,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )
    images: Any = hf.Glm4vImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 168 * 168})
    return config, hf.Glm4vProcessor(images, tokenizer, hf.Glm4vVideoProcessor())


def lfm2_vl() -> Made:
    tokens = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
              "image_thumbnail": "<|img_thumbnail|>"}  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    config = hf.Lfm2VlConfig(
        text_config={"model_type": "lfm2", **LLAMA, "layer_types": ["conv", "full_attention", "conv", "full_attention"],
                     "num_hidden_layers": 4, "block_multiple_of": 16},
        vision_config=dict(model_type="siglip2_vision_model", hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                           num_attention_heads=2, num_patches=16, patch_size=16, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )  # fmt: skip
    images = hf.Lfm2VlImageProcessor(
        do_image_splitting=False, min_image_tokens=4, max_image_tokens=16, tile_size=64, max_pixels_tolerance=0.5
    )
    return config, hf.Lfm2VlProcessor(images, tokenizer)
