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
import transformers as hf
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from stages.extract.presets import TINY

WIDTH: Final = 32
LLAMA: Final = dict(
    vocab_size=640, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=2048,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CLIP: Final = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
)  # fmt: skip


def _tokenizer(**named: str) -> Any:
    """The embedded LMM's tokenizer with named special tokens, such as image_token="<image>"."""
    return PreTrainedTokenizerFast.from_pretrained(TINY / "lmm", extra_special_tokens=named)


def _rope(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def llava(text: str = "llama") -> tuple[Any, Any]:
    tokenizer = _tokenizer(image_token="<image>")
    config = hf.LlavaConfig(
        text_config={"model_type": text, **LLAMA},
        vision_config={"model_type": "clip_vision_model", **CLIP},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return config, processor


def llava_next(text: str = "mistral") -> tuple[Any, Any]:
    tokenizer = _tokenizer(image_token="<image>")
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


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
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


def _qwen(config: Any, processor: Any, video: Any, vision: dict[str, Any], text: dict[str, Any], patch: int):
    tokens = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = _tokenizer(**tokens)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    made = config(text_config={**LLAMA, **text}, vision_config=vision, **ids)
    images = hf.Qwen2VLImageProcessor(patch_size=patch, min_pixels=(4 * patch) ** 2, max_pixels=(12 * patch) ** 2)
    return made, processor(images, tokenizer, video)


def qwen2_vl() -> tuple[Any, Any]:
    vision = dict(depth=2, embed_dim=16, hidden_size=WIDTH, num_heads=2, mlp_ratio=2)
    text = {"rope_parameters": _rope([1, 1, 2])}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor(), vision, text, 14)


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, fullatt_block_indexes=[1],
        window_size=56,
    )  # fmt: skip
    text = {"rope_parameters": _rope([1, 1, 2])}
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor(), vision, text, 14)


def qwen3_vl() -> tuple[Any, Any]:
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    )  # fmt: skip
    text = {"head_dim": 8, "rope_parameters": _rope([2, 1, 1])}
    return _qwen(hf.Qwen3VLConfig, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor(), vision, text, 16)


def glm4v() -> tuple[Any, Any]:
    tokens = {
        "image_token": "<|image|>", "video_token": "<|video|>", "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>", "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }  # fmt: skip
    tokenizer = _tokenizer(**tokens)
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=WIDTH, image_size=56
    )  # fmt: skip
    config = hf.Glm4vConfig(
        text_config={**LLAMA, "rope_parameters": _rope([1, 1, 2])},
        vision_config=vision,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )
    images: Any = hf.Glm4vImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 168 * 168})
    return config, hf.Glm4vProcessor(images, tokenizer, hf.Glm4vVideoProcessor())


def internvl() -> tuple[Any, Any]:
    tokens = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(**tokens)
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


def gemma3() -> tuple[Any, Any]:
    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(**tokens)
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


def paligemma(text: str = "gemma2") -> tuple[Any, Any]:
    window = {"query_pre_attn_scalar": 8, "sliding_window": 16} if text == "gemma2" else {}
    tokenizer = _tokenizer(image_token="<image>")
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


def _tiles(config: Any, processor: Any, images: Any, **more: Any) -> tuple[Any, Any]:
    tokens = {"image_token": "<image>", "fake": "<fake_token_around_image>", "global_image": "<global-img>",
              "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    tokens |= {f"row_{r}_col_{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}
    tokenizer = _tokenizer(**tokens)
    made = config(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={**CLIP, "image_size": 112},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = images(size={"longest_edge": 224}, max_image_size={"longest_edge": 112}, do_image_splitting=False)
    return made, processor(pixels, tokenizer, image_seq_len=16, **more)


def idefics3() -> tuple[Any, Any]:
    return _tiles(hf.Idefics3Config, hf.Idefics3Processor, hf.Idefics3ImageProcessor)


def smolvlm() -> tuple[Any, Any]:
    video = hf.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 112})
    return _tiles(hf.SmolVLMConfig, hf.SmolVLMProcessor, hf.SmolVLMImageProcessor, video_processor=video)


def deepseek_vl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )
    images = hf.DeepseekVLImageProcessor(size={"height": 56, "width": 56}, min_size=14)
    return config, hf.DeepseekVLProcessor(images, tokenizer, num_image_tokens=16)


def deepseek_vl_hybrid() -> tuple[Any, Any]:
    """Its high-resolution tower is a SAM encoder, whose neck ends in 16 times fewer cells than its input has pixels."""
    tokenizer = _tokenizer(image_token="<image_placeholder>")
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


def janus() -> tuple[Any, Any]:
    tokens = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(**tokens)
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


def _pixtral_tower(config: Any, patch: int, merge: int, **more: Any) -> tuple[Any, Any]:
    tokens = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    tokenizer = _tokenizer(**tokens)
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


def mistral3() -> tuple[Any, Any]:
    return _pixtral_tower(hf.Mistral3Config, 14, 2, spatial_merge_size=2)


def pixtral() -> tuple[Any, Any]:
    return _pixtral_tower(hf.LlavaConfig, 16, 1, vision_feature_layer=-1, vision_feature_select_strategy="full")


def aya_vision() -> tuple[Any, Any]:
    tokens = {
        "image_token": "<image>", "start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>", "patch": "<|IMG_PATCH|>",
        "line": "<|IMG_LINE_BREAK|>", "tile": "TILE", "global": "TILE_GLOBAL",
        **{f"tile_{number}": f"TILE_{number}" for number in range(1, 5)},
    }  # fmt: skip
    tokenizer = _tokenizer(**tokens)
    config = hf.AyaVisionConfig(
        text_config={"model_type": "cohere2", **LLAMA, "head_dim": 8, "sliding_window": 16},
        vision_config={"model_type": "siglip_vision_model", **CLIP, "image_size": 112, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 112, "width": 112}, crop_to_patches=False, max_patches=4)
    return config, hf.AyaVisionProcessor(images, tokenizer, patch_size=28, img_size=112, downsample_factor=1)


def molmo2() -> tuple[Any, Any]:
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
    tokenizer = _tokenizer(**tokens)
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


def lfm2_vl() -> tuple[Any, Any]:
    tokens = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
              "image_thumbnail": "<|img_thumbnail|>"}  # fmt: skip
    tokenizer = _tokenizer(**tokens)
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


FAMILIES: Final[dict[str, Callable[[], tuple[Any, Any]]]] = {
    "llava": llava,
    "llava-mistral": lambda: llava("mistral"),
    "llava-next-mistral": llava_next,
    "llava-next-vicuna": lambda: llava_next("llama"),
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "glm4v": glm4v,
    "internvl": internvl,
    "gemma3": gemma3,
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
    "molmo2": molmo2,
    "lfm2-vl": lfm2_vl,
}


def save_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a family (weights of a fixed seed) and return its folder."""
    config, processor = FAMILIES[name]()
    torch.manual_seed(seed)
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projection begins at zero: no image would be seen
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
