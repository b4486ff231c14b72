"""The batched refiner against segment_anything's own modules, called object by object in the paper's order of steps.

Matrix: sets of prompts x (float64: outputs and gradients of coarse logits, hidden states and every trained parameter;
float32: outputs; bfloat16 autocast: near them); images of three shapes; 0 to 5 text tokens per object. Gradients are
compared in float64 only: SAM normalises the mask prompt's channels, and in the constant padding that divides by 0.001,
so that float32 rounding reaches 1e-4 of the greatest gradient in either program.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from stages.extract.images import Box
from stages.extract.sam import SAM_PRESETS, build_sam
from stages.train_head.heads.base import HeadBatch
from stages.train_head.heads.mask_refiner import MaskRefiner, mask_boxes, prompt_boxes, prompt_masks
from tests.stages.train_head.heads.batches import SAM, SHAPE, blobs, make_batch

PROMPTS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (True, False, True)]


def crop(logits: torch.Tensor, box: Box) -> torch.Tensor:
    """The image's part of [S, S] logits, by the official program's formula."""
    size = logits.shape[-1]
    top, left = int(box.top * size / box.size), int(box.left * size / box.size)
    height, width = int(box.height * size / box.size + 0.5), int(box.width * size / box.size + 0.5)
    return logits[top : top + height, left : left + width]


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(image[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]


def plain_mask_prompt(logits: torch.Tensor, lmm: Box, shown: Box, side: int) -> torch.Tensor:
    """Crop -> size in SAM's input -> pad to the input -> shrink to [side, side]."""
    part = crop(logits, lmm)
    least = min(-1.0, part.min().item())
    large = resize(part, shown.height, shown.width)
    large = F.pad(large, (0, shown.size - shown.width, 0, shown.size - shown.height), value=least)
    return resize(large, side, side)


def plain_box_prompt(logits: torch.Tensor, lmm: Box, shown: Box, height: int, width: int) -> list[float]:
    """Box around probability > 0.5 at the image's size, in pixels of SAM's input."""
    mask = resize(crop(logits, lmm), height, width).sigmoid() > 0.5
    found = [(y, x) for y, row in enumerate(mask.tolist()) for x, inside in enumerate(row) if inside]
    ys, xs = [y for y, _ in found], [x for _, x in found]
    x1, y1, x2, y2 = (min(xs), min(ys), max(xs) + 1, max(ys) + 1) if found else (0, 0, width, height)
    across, down = shown.width / width, shown.height / height
    return [x1 * across, y1 * down, x2 * across, y2 * down]


def refine_one(refiner: MaskRefiner, logits: torch.Tensor, k: int, batch: HeadBatch) -> torch.Tensor:
    """Object k alone, through `PromptEncoder.forward` and `MaskDecoder.forward`."""
    sample = int(batch.sample_of_object[k])
    lmm, shown, (height, width) = batch.lmm_boxes[sample], batch.sam_boxes[sample], batch.image_sizes[sample]
    boxes = masks = None
    if refiner.use_box:
        boxes = torch.tensor([plain_box_prompt(logits.detach(), lmm, shown, height, width)])
    if refiner.use_mask:
        masks = plain_mask_prompt(logits, lmm, shown, refiner.sam.mask_size)[None, None]
    sparse, dense = refiner.prompt_encoder(points=None, boxes=boxes, masks=masks)
    if refiner.use_text:
        share = refiner.text_layer_weights.exp() / refiner.text_layer_weights.exp().sum()
        for token in range(len(batch.hidden)):
            if int(batch.hidden_object[token]) == k:
                mixed = sum(share[layer] * batch.hidden[token, layer] for layer in range(SHAPE.layers))
                text = refiner.text_proj.weight @ mixed + refiner.text_proj.bias
                sparse = torch.cat([sparse, text[None, None]], dim=1)
    low, _ = refiner.mask_decoder(
        image_embeddings=batch.embeddings[sample][None],
        image_pe=refiner.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return low[0, 0]


def batch_with(counts: list[int], seed: int = 0) -> HeadBatch:
    """`make_batch` with so many text tokens of each of its seven objects, interleaved."""
    random = torch.Generator().manual_seed(seed)
    owner = torch.tensor([k for k, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    owner = owner[torch.randperm(len(owner), generator=random)]
    hidden = torch.randn(len(owner), SHAPE.layers, SHAPE.width, generator=random)
    return replace(make_batch(), hidden=hidden, hidden_object=owner)


def make_refiner(mask: bool, box: bool, text: bool) -> MaskRefiner:
    torch.manual_seed(0)
    refiner = MaskRefiner(SHAPE, SAM, mask=mask, box=box, text=text)
    if text:
        torch.nn.init.normal_(refiner.text_layer_weights)
    return refiner


@pytest.mark.parametrize(("mask", "box", "text"), PROMPTS)
def test_equals_segment_anything_object_by_object(mask: bool, box: bool, text: bool) -> None:
    refiner, batch, coarse = make_refiner(mask, box, text), make_batch(), blobs()
    expected = torch.stack([refine_one(refiner, coarse[k], k, batch) for k in range(len(coarse))])
    torch.testing.assert_close(refiner(coarse, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("counts", [[3, 0, 5, 1, 2, 4, 0], [0] * 7, [2] * 7], ids=["0 to 5", "none", "equal"])
def test_equals_segment_anything_for_any_numbers_of_tokens(counts: list[int]) -> None:
    for prompts in ((True, True, True), (False, False, True)):
        refiner, batch, coarse = make_refiner(*prompts), batch_with(counts), blobs()
        expected = torch.stack([refine_one(refiner, coarse[k], k, batch) for k in range(len(coarse))])
        torch.testing.assert_close(refiner(coarse, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("mask", "box", "text"), PROMPTS)
def test_under_bfloat16_autocast_logits_are_float32_and_near(mask: bool, box: bool, text: bool) -> None:
    refiner, batch, coarse = make_refiner(mask, box, text), batch_with([3, 0, 5, 1, 2, 4, 0]), blobs().bfloat16()
    exact = refiner(coarse.float(), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = refiner(coarse.requires_grad_(), batch)
    assert logits.dtype == torch.float32
    assert (logits - exact).std() < 0.02 * exact.std()
    logits.square().mean().backward()
    trained = [p for p in refiner.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_embeddings_may_be_float16() -> None:
    refiner, batch, coarse = make_refiner(True, True, True), make_batch(), blobs()
    half = batch.embeddings.half()
    assert torch.equal(refiner(coarse, replace(batch, embeddings=half)),
                       refiner(coarse, replace(batch, embeddings=half.float())))  # fmt: skip


@pytest.mark.parametrize(("mask", "box", "text"), PROMPTS)
def test_gradients_equal_segment_anything_object_by_object(mask: bool, box: bool, text: bool) -> None:
    refiner, batch = make_refiner(mask, box, text).double(), batch_with([3, 0, 5, 1, 2, 4, 0])
    refiner.prompt_encoder.pe_layer.float()  # it casts coordinates to float32 itself
    hidden = batch.hidden.double().requires_grad_()
    batch = replace(batch, hidden=hidden, embeddings=batch.embeddings.double())
    trained = [p for p in refiner.parameters() if p.requires_grad]
    direction = torch.randn(len(batch.attention), SAM.mask_size, SAM.mask_size, dtype=torch.float64)

    def with_gradients(one_by_one: bool) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        coarse = blobs().double().requires_grad_()
        if one_by_one:
            logits = torch.stack([refine_one(refiner, coarse[k], k, batch) for k in range(len(coarse))])
        else:
            logits = refiner(coarse, batch)
        gradients = torch.autograd.grad((logits * direction).sum(), [coarse, hidden, *trained], allow_unused=True)
        return logits.detach(), list(gradients)

    (actual, gradients), (expected, expected_gradients) = with_gradients(False), with_gradients(True)
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=0)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            torch.testing.assert_close(got, wanted, atol=1e-7 * max(1.0, wanted.abs().max().item()), rtol=0)
    assert (gradients[0] is None) == (not mask)  # the box is detached, the mask is not
    assert (gradients[1] is None) == (not text)


def test_geometry_at_the_official_sizes() -> None:
    """Prompts for the 1024-pixel frame: four pixels average to one, edges inside of a pixel, padding on one side."""
    sam, batch = SAM_PRESETS["vit_l"], make_batch()
    sizes = [(427, 640), (500, 333), (375, 1242)]
    lmm = [Box(top=56, left=0, height=224, width=336, size=336), Box(top=0, left=56, height=336, width=223, size=336),
           Box(top=117, left=0, height=101, width=336, size=336)]  # fmt: skip
    shown = [Box(top=0, left=0, height=h, width=w, size=1024) for h, w in ((683, 1024), (1024, 682), (309, 1024))]
    batch = replace(batch, lmm_boxes=lmm, image_sizes=sizes)
    coarse = blobs(size=64)
    masks, boxes = prompt_masks(coarse, batch, shown, sam), prompt_boxes(coarse, batch, shown)
    for k, sample in enumerate(batch.sample_of_object.tolist()):
        expected = plain_mask_prompt(coarse[k], lmm[sample], shown[sample], 256)
        torch.testing.assert_close(masks[k], expected, atol=1e-5, rtol=0)
        expected_box = plain_box_prompt(coarse[k], lmm[sample], shown[sample], *sizes[sample])
        torch.testing.assert_close(boxes[k], torch.tensor(expected_box), atol=1e-3, rtol=0)


def test_an_object_does_not_depend_on_its_neighbours() -> None:
    refiner, batch, coarse = make_refiner(True, True, True), make_batch(), blobs()
    together = refiner(coarse, batch)
    for k in range(len(coarse)):
        own = batch.hidden_object == k
        alone = replace(
            batch,
            hidden=batch.hidden[own],
            hidden_object=torch.zeros(int(own.sum()), dtype=torch.int64),
            sample_of_object=batch.sample_of_object[k : k + 1],
        )
        torch.testing.assert_close(refiner(coarse[k : k + 1], alone)[0], together[k], atol=1e-5, rtol=0)


def test_no_objects_give_no_masks() -> None:
    refiner, batch = make_refiner(True, True, True), make_batch()
    none = torch.zeros(0, dtype=torch.int64)
    batch = replace(batch, hidden=batch.hidden[:0], hidden_object=none, sample_of_object=none)
    assert refiner(blobs()[:0], batch).shape == (0, SAM.mask_size, SAM.mask_size)


@pytest.mark.parametrize(("mask", "box", "text"), PROMPTS)
def test_exactly_what_is_trained_gets_a_gradient(mask: bool, box: bool, text: bool) -> None:
    refiner = make_refiner(mask, box, text)
    refiner(blobs(), make_batch()).square().mean().backward()
    for name, parameter in refiner.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_starts_from_a_trained_sam() -> None:
    torch.manual_seed(1)
    sam, refiner = build_sam(SAM), make_refiner(True, True, True)
    refiner.start_from(sam)
    theirs = sam.state_dict()
    for name, value in refiner.state_dict().items():
        if not name.startswith("text_"):
            assert torch.equal(value, theirs[name]), name
    first = next(refiner.mask_decoder.parameters())
    assert first.data_ptr() != next(sam.mask_decoder.parameters()).data_ptr()  # a copy, SAM stays frozen


def test_boxes_of_masks() -> None:
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    masks[2] = True
    expected = [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 7, 5], [0, 0, 7, 5]]
    assert mask_boxes(masks).tolist() == expected


def test_a_batch_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="embeddings"):
        make_refiner(True, True, True)(blobs(), replace(make_batch(), embeddings=None))
