"""LLaVA and what grew out of it: LLaVA-NeXT, LLaVA-OneVision, Mistral 3, Pixtral."""

from __future__ import annotations

from typing import Any

import transformers as hf

from benchmarks.families.parts import CLIP, LLAMA, Made, tokenizer_with


def llava(text: str = "llama", **more: Any) -> Made:
    tokenizer = tokenizer_with(image_token="<image>")
    config = hf.LlavaConfig(
        text_config={"model_type": text, **LLAMA, **more},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    return config, _clip_processor(tokenizer)


def _clip_processor(tokenizer: Any) -> Any:
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return hf.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def vipllava() -> Made:
    """As LLaVA, but its projector reads several layers of the vision tower."""
    tokenizer = tokenizer_with(image_token="<image>")
    config = hf.VipLlavaConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-2, -1],
    )
    return config, _clip_processor(tokenizer)


def llava_next(text: str = "mistral") -> Made:
    tokenizer = tokenizer_with(image_token="<image>")
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    config = hf.LlavaNextConfig(
        text_config={"model_type": text, **LLAMA},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return config, processor


def llava_onevision() -> Made:
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>")
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **LLAMA},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    images = hf.LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints)
    processor = hf.LlavaOnevisionProcessor(
        images, tokenizer, hf.LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full"
    )
    return config, processor


def _pixtral_tower(config: Any, patch: int, merge: int, **more: Any) -> Made:
    tokens = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    tokenizer = tokenizer_with(**tokens)
    made = config(
        text_config={"model_type": "mistral", **LLAMA, "head_dim": 8},
        vision_config=dict(
            model_type="pixtral", hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=112, patch_size=patch, head_dim=12,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        **more,
    )  # fmt: skip
    images = hf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": patch, "width": patch})
    return made, hf.PixtralProcessor(images, tokenizer, patch_size=patch, spatial_merge_size=merge)


def mistral3() -> Made:
    return _pixtral_tower(hf.Mistral3Config, 14, 2, spatial_merge_size=2)


def pixtral() -> Made:
    return _pixtral_tower(hf.LlavaConfig, 16, 1, vision_feature_layer=-1, vision_feature_select_strategy="full")
