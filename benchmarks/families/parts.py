"""What the tiny checkpoints have in common: sizes of text decoder and vision tower, the tokenizer."""

from __future__ import annotations

from typing import Any, Final

from transformers import PreTrainedTokenizerFast

from stages.extract.presets import TINY

Made = tuple[Any, Any]  # a family's configuration and its processor
WIDTH: Final = 32
LLAMA: Final = dict(
    vocab_size=640, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=2048,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CLIP: Final = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
)  # fmt: skip


def tokenizer_with(**named: str) -> Any:
    """The embedded LMM's tokenizer with named special tokens, such as image_token="<image>"."""
    return PreTrainedTokenizerFast.from_pretrained(TINY / "lmm", extra_special_tokens=named)


def mrope(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
