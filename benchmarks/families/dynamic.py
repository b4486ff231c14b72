"""Families whose grid follows the image: Qwen-VL, GLM-4V, LFM2-VL, Gemma 4."""

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


def qwen3_5() -> Made:
    """A hybrid: before each layer of full attention one of linear attention, which has no rows."""
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, num_position_embeddings=64
    )  # fmt: skip
    text = dict(
        num_hidden_layers=4, full_attention_interval=2, head_dim=16, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4,
        rope_parameters={**mrope([2, 1, 1]), "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return _qwen(hf.Qwen3_5Config, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor(), vision, text, 16)


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


def gemma4(**more: Any) -> Made:
    """Sliding layers with heads of 8, full ones with heads of 16; the last two attend to keys of layers before them."""
    tokens = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "video_token": "<|video|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens, eoa_token="<audio|>")
    config = hf.Gemma4Config(
        text_config={**LLAMA, "num_hidden_layers": 4, "head_dim": 8, "global_head_dim": 16, "sliding_window": 64,
                     "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
                     "vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 8, **more},
        vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=2, head_dim=12, patch_size=4, position_embedding_size=256),
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )  # fmt: skip
    images: Any = hf.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70)
    video: Any = hf.Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70)
    return config, hf.Gemma4Processor(hf.Gemma4AudioFeatureExtractor(), images, tokenizer, video)
