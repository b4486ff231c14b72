"""The whole head and all its losses against the plain references of its parts, chained object by object.

The references (a U-Net without modules, segment_anything's own modules one object at a time, losses in loops over
pixels) share no helper with the program; here they are fed with one another's results, from attention to the total.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from stages.extract.images import Box
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead
from stages.train_head.losses import head_loss
from stages.train_head.targets import Targets, frame_targets
from tests.stages.train_head.heads.batches import SAM, SHAPE, make_batch
from tests.stages.train_head.heads.test_mask_decoder import reference
from tests.stages.train_head.heads.test_mask_refiner import refine_one
from tests.stages.train_head.test_losses import plain_mask_loss, sigmoid


def plain_target(mask: np.ndarray, box: Box, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One object's mask in a square of side `size`, and which of it is image: of each cell the pixel at its centre."""
    top, left = int(box.top * size / box.size), int(box.left * size / box.size)
    height, width = int(box.height * size / box.size + 0.5), int(box.width * size / box.size + 0.5)
    target, valid = torch.zeros(size, size, dtype=torch.uint8), torch.zeros(size, size, dtype=torch.uint8)
    for y in range(height):
        for x in range(width):
            inside = mask[int((y + 0.5) * mask.shape[0] / height), int((x + 0.5) * mask.shape[1] / width)]
            target[top + y, left + x], valid[top + y, left + x] = int(inside), 1
    return target, valid


def test_outputs_and_losses_equal_the_plain_references() -> None:
    torch.manual_seed(0)
    head = GroundingHead(SHAPE, GroundingConfig(input_size=16, base_width=4, sam=SAM)).eval()
    for name, parameter in head.named_parameters():
        if ".gn." in name or name.endswith("text_layer_weights"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.4)
    torch.nn.init.normal_(head.mask_head.conv_seg.weight, std=2.0)
    head.mask_head.conv_seg.bias.data -= 1.1  # masks with an inside and an outside
    batch, refiner = make_batch(), head.refiner
    assert refiner is not None and batch.sam_boxes is not None
    random = np.random.default_rng(0)
    sizes, counts = batch.image_sizes, [3, 2, 2]
    masks = [random.random((n, h, w)) > 0.6 for n, (h, w) in zip(counts, sizes, strict=True)]
    keywords = torch.from_numpy(random.random(len(batch.answer_hidden)) > 0.5)
    coarse_side, fine_side = 16, SAM.mask_size

    with torch.no_grad():
        output = head(batch)
        loss = head_loss(
            output,
            Targets(
                coarse=frame_targets(masks, batch.lmm_boxes, coarse_side),
                refined=frame_targets(masks, batch.sam_boxes, fine_side),
                keyword=keywords,
            ),
        )
        weights = {name: value.detach() for name, value in head.mask_head.named_parameters()}
        coarse = torch.stack([reference(maps, weights, coarse_side) for maps in batch.attention])
        refined = torch.stack([refine_one(refiner, coarse[k], k, batch) for k in range(len(coarse))])
        row, bias = head.selector.weight[0], head.selector.bias[0]
        keyword = [float(sum(a * b for a, b in zip(row, hidden, strict=True)) + bias) for hidden in batch.answer_hidden]

    assert output.refined is not None and output.keyword is not None
    assert (coarse > 0).any() and (coarse < 0).any()
    torch.testing.assert_close(output.coarse, coarse, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.refined, refined, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.keyword, torch.tensor(keyword), atol=1e-5, rtol=0)

    expected = 0.0
    for logits, boxes, size in ((coarse, batch.lmm_boxes, coarse_side), (refined, batch.sam_boxes, fine_side)):
        targets = [plain_target(mask, boxes[sample], size) for sample, found in enumerate(masks) for mask in found]
        bce, dice = plain_mask_loss(logits, _Plain([t for t, _ in targets], [v for _, v in targets]))
        expected += bce + dice
    scores = [-math.log(sigmoid(k) if true else 1 - sigmoid(k)) for k, true in zip(keyword, keywords, strict=True)]
    expected += sum(scores) / len(scores)
    assert abs(loss.total.item() - expected) < 1e-5 * max(1.0, expected)


class _Plain:
    """What `plain_mask_loss` reads of targets."""

    def __init__(self, masks: list[torch.Tensor], valid: list[torch.Tensor]) -> None:
        self.mask, self.valid = torch.stack(masks), torch.stack(valid)
