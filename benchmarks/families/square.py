"""Families that see one square of a fixed size, stretched or padded."""

from __future__ import annotations

from typing import Any

import transformers as hf

from benchmarks.families.parts import CLIP, LLAMA, WIDTH, Made, tokenizer_with


def gemma3() -> Made:
    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_with(**tokens)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    config = hf.Gemma3Config(
        text_config={**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        vision_config={**CLIP, "image_size": 112, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 112, "width": 112})
    return config, hf.Gemma3Processor(images, tokenizer, image_seq_length=16)


def paligemma(text: str = "gemma2") -> Made:
    window = {"query_pre_attn_scalar": 8, "sliding_window": 16} if text == "gemma2" else {}
    tokenizer = tokenizer_with(image_token="<image>")
    config = hf.PaliGemmaConfig(
        text_config={"model_type": text, **LLAMA, "head_dim": 8, **window},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False,
                       "projection_dim": WIDTH, "num_image_tokens": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )  # fmt: skip
    images: Any = hf.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    return config, hf.PaliGemmaProcessor(images, tokenizer)


def deepseek_vl() -> Made:
    tokenizer = tokenizer_with(image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )
    images = hf.DeepseekVLImageProcessor(size={"height": 56, "width": 56}, min_size=14)
    return config, hf.DeepseekVLProcessor(images, tokenizer, num_image_tokens=16)


def deepseek_vl_hybrid() -> Made:
    """Its high-resolution tower is a SAM encoder, whose neck ends in 16 times fewer cells than its input has pixels."""
    tokenizer = tokenizer_with(image_token="<image_placeholder>")
    config = hf.DeepseekVLHybridConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False},
        high_res_vision_config=dict(
            model_type="sam_vision_model", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_dim=16,
            output_channels=8, image_size=64, patch_size=16, global_attn_indexes=[1], window_size=2,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    images = hf.DeepseekVLHybridImageProcessor(
        size={"height": 56, "width": 56}, high_res_size={"height": 64, "width": 64}, min_size=14
    )
    return config, hf.DeepseekVLHybridProcessor(images, tokenizer, num_image_tokens=16)


def janus() -> Made:
    tokens = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_with(**tokens)
    config = hf.JanusConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config=dict(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
            projection_dim=WIDTH, num_image_tokens=16,
        ),
        vq_config=dict(embed_dim=8, num_embeddings=16, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
                       num_res_blocks=1, projection_dim=WIDTH, image_token_embed_dim=WIDTH, num_patches=4),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    images = hf.JanusImageProcessor(size={"height": 56, "width": 56}, min_size=14)
    return config, hf.JanusProcessor(images, tokenizer, num_image_tokens=16)
