"""A checkpoint with the names of the published F-LMM heads, written from what is known of those."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.extract.sam import SamConfig, build_sam


def published_weights(
    *, channels: int, layers: int, width: int, base: int, sam: SamConfig, seed: int = 0
) -> dict[str, Tensor]:
    """Random float32 tensors: the U-Net, the text weights, and a SAM's prompt encoder and mask decoder."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.gn.weight"] = shapes[f"{name}.gn.bias"] = (outputs,)

    for level, (inputs, part) in enumerate([(channels, "0.0"), (base, "1.1"), (2 * base, "2.1"), (4 * base, "3.1")]):
        outputs = base * 2**level
        block(f"mask_head.encoder.{part}.convs.0", inputs, outputs, 3)
        block(f"mask_head.encoder.{part}.convs.1", outputs, outputs, 3)
    for step in range(3):
        outputs = base * 2**step
        block(f"mask_head.decoder.{step}.conv_block.convs.0", 2 * outputs, outputs, 3)
        block(f"mask_head.decoder.{step}.conv_block.convs.1", outputs, outputs, 3)
        block(f"mask_head.decoder.{step}.upsample.interp_upsample.1", 2 * outputs, outputs, 1)
    shapes |= {"mask_head.conv_seg.weight": (1, base, 1, 1), "mask_head.conv_seg.bias": (1,)}
    shapes |= {"text_layer_weights": (layers,), "text_proj.weight": (sam.channels, width)}
    shapes |= {"text_proj.bias": (sam.channels,)}
    theirs = build_sam(sam)
    for name, module in (("prompt_encoder", theirs.prompt_encoder), ("mask_decoder", theirs.mask_decoder)):
        shapes |= {f"sam.model.{name}.{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}
