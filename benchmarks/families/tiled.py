"""Families that tile large images, here with the tiling switched off; Molmo 2 with its crops."""

from __future__ import annotations

from typing import Any

import transformers as hf

from benchmarks.families.parts import CLIP, LLAMA, WIDTH, Made, tokenizer_with


def internvl() -> Made:
    tokens = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **LLAMA},
        vision_config=dict(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=[112, 112],
            patch_size=[14, 14],
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 112, "width": 112}, crop_to_patches=False, max_patches=4)
    return config, hf.InternVLProcessor(images, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=16)


def aya_vision() -> Made:
    tokens = {
        "image_token": "<image>", "start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>", "patch": "<|IMG_PATCH|>",
        "line": "<|IMG_LINE_BREAK|>", "tile": "TILE", "global": "TILE_GLOBAL",
        **{f"tile_{number}": f"TILE_{number}" for number in range(1, 5)},
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    config = hf.AyaVisionConfig(
        text_config={"model_type": "cohere2", **LLAMA, "head_dim": 8, "sliding_window": 16},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "image_size": 112, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 112, "width": 112}, crop_to_patches=False, max_patches=4)
    return config, hf.AyaVisionProcessor(images, tokenizer, patch_size=28, img_size=112, downsample_factor=1)


def cohere2_vision() -> Made:
    tokens = {
        "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    config = hf.Cohere2VisionConfig(
        text_config={"model_type": "cohere2", **LLAMA, "head_dim": 8, "sliding_window": 16,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "image_size": 112, "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=48,
    )  # fmt: skip
    images: Any = hf.Cohere2VisionImageProcessor(size={"height": 112, "width": 112}, max_patches=4)
    images.patch_size = 4  # tokens along a side of a tile
    return config, hf.Cohere2VisionProcessor(images, tokenizer)


def llama4() -> Made:
    """Chunks of 32 tokens, within which layers 1 and 3 attend; layer 2 attends to all, without rotary positions."""
    tokens = {
        "image_token": "<|image|>", "patch": "<|patch|>", "start": "<|image_start|>", "end": "<|image_end|>",
        "tile_x": "<|tile_x_separator|>", "tile_y": "<|tile_y_separator|>",
    }  # fmt: skip
    tokenizer = tokenizer_with(**tokens)
    config = hf.Llama4Config(
        text_config={**LLAMA, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
                     "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2, "attention_chunk_size": 32,
                     "floor_scale": 8},
        vision_config=dict(
            hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=112,
            patch_size=14, vision_output_dim=24, projector_input_dim=24, projector_output_dim=24,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )  # fmt: skip
    images: Any = hf.Llama4ImageProcessor(size={"height": 112, "width": 112})
    return config, hf.Llama4Processor(images, tokenizer, patch_size=14)


def _tiles(config: Any, processor: Any, images: Any, **more: Any) -> Made:
    tokens = {"image_token": "<image>", "fake": "<fake_token_around_image>", "global_image": "<global-img>",
              "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    tokens |= {f"row_{r}_col_{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}
    tokenizer = tokenizer_with(**tokens)
    made = config(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={**CLIP, "image_size": 112},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = images(size={"longest_edge": 224}, max_image_size={"longest_edge": 112}, do_image_splitting=False)
    return made, processor(pixels, tokenizer, image_seq_len=16, **more)


def idefics3() -> Made:
    return _tiles(hf.Idefics3Config, hf.Idefics3Processor, hf.Idefics3ImageProcessor)


def smolvlm() -> Made:
    video = hf.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 112})
    return _tiles(hf.SmolVLMConfig, hf.SmolVLMProcessor, hf.SmolVLMImageProcessor, video_processor=video)


def molmo2() -> Made:
    tokens = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokens |= {
        name: f"<{name}>"
        for name in (
            "im_patch",
            "im_col",
            "im_start",
            "low_res_im_start",
            "frame_start",
            "im_end",
            "frame_end",
            "im_low",
        )
    }
    tokenizer = tokenizer_with(**tokens)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=12, hidden_size=24, intermediate_size=32)
    config = hf.Molmo2Config(
        text_config={**LLAMA, "head_dim": 8},
        vision_config={**heads, "num_hidden_layers": 2, "image_size": [56, 56]},
        adapter_config={**heads, "vision_feature_layer": [-1, -2], "text_hidden_size": WIDTH},
        image_start_token_id=ids["im_start"],
        low_res_image_start_token_id=ids["low_res_im_start"],
        image_end_token_id=ids["im_end"],
        image_patch_id=ids["im_patch"],
        frame_start_token_id=ids["frame_start"],
        frame_end_token_id=ids["frame_end"],
    )
    images = hf.Molmo2ImageProcessor(size={"height": 56, "width": 56}, overlap_margins=[1, 1], max_crops=2)
    return config, hf.Molmo2Processor(images, hf.Molmo2VideoProcessor(size={"height": 56, "width": 56}), tokenizer)
