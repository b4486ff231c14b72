"""Small random batches for the tests of heads: images of several shapes, objects with different numbers of tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stages.extract.images import centred_box, corner_box
from stages.extract.sam import SamConfig
from stages.train_head.heads.base import HeadBatch, PriorShape

SHAPE = PriorShape(channels=6, layers=3, width=20)
SAM = SamConfig(
    width=16, depth=1, heads=2, global_attention=(0,), image_size=128, patch_size=16, window=0, channels=16,
    decoder_heads=2, decoder_mlp=32, mask_channels=8,
)  # fmt: skip
IMAGE_SIZES = [(40, 64), (70, 50), (33, 33)]  # (height, width); 40/64 and 50/70 do not divide SAM's side evenly
TOKENS = [2, 1, 3, 2, 0, 1, 2]  # of each object
SAMPLE = [0, 0, 0, 1, 1, 2, 2]
LMM_SIZE = 48


def make_batch(seed: int = 0, grid: int = 6) -> HeadBatch:
    """Seven objects on three images; the tokens of different objects are interleaved."""
    random = torch.Generator().manual_seed(seed)
    owner = torch.tensor([k for k, count in enumerate(TOKENS) for _ in range(count)])
    owner = owner[torch.randperm(len(owner), generator=random)]
    return HeadBatch(
        attention=torch.rand(len(SAMPLE), SHAPE.channels, grid, grid, generator=random) ** 4,
        hidden=torch.randn(len(owner), SHAPE.layers, SHAPE.width, generator=random),
        hidden_object=owner,
        sample_of_object=torch.tensor(SAMPLE),
        answer_hidden=torch.randn(11, SHAPE.width, generator=random),
        lmm_boxes=[centred_box(w, h, LMM_SIZE) for h, w in IMAGE_SIZES],
        image_sizes=IMAGE_SIZES,
        embeddings=torch.randn(len(IMAGE_SIZES), SAM.channels, SAM.grid, SAM.grid, generator=random),
        sam_boxes=[corner_box(w, h, SAM.image_size) for h, w in IMAGE_SIZES],
    )


def blobs(seed: int = 0, size: int = 16) -> torch.Tensor:
    """Smooth logits float32 [7, size, size] with regions above and below 0; the last object's are all below."""
    random = torch.Generator().manual_seed(seed)
    logits = F.interpolate(2 * torch.randn(len(SAMPLE), 1, 5, 5, generator=random) - 1.2, size=size, mode="bicubic")[
        :, 0
    ]
    logits[1] *= 0.2  # nowhere below -1
    logits[-1] = -0.5 - logits[-1].abs()
    return logits
