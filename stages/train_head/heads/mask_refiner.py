"""The mask refiner of F-LMM: SAM's prompt encoder and mask decoder, trained, prompted by coarse mask, box and text.

Letters: B samples, K objects, T object tokens, M layers, d the LMM's width, S side of the coarse logits (LMM's square),
e side of SAM's embedding, Ce its channels. Boxes of prompts are (x1, y1, x2, y2).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from stages.extract.images import Box
from stages.extract.sam import SamConfig, build_mask_decoder, build_prompt_encoder
from stages.train_head.heads.base import HeadBatch, PriorShape, crop_resize
from stages.train_head.heads.two_way import two_way


class MaskRefiner(nn.Module):
    """Coarse logits [K, S, S] over the LMM's square -> refined logits [K, 4e, 4e] over SAM's square."""

    def __init__(self, shape: PriorShape, sam: SamConfig, *, mask: bool, box: bool, text: bool) -> None:
        """`mask`, `box`, `text`: which prompts SAM gets. The weights are random until `start_from`."""
        super().__init__()
        self.sam = sam
        self.use_mask, self.use_box, self.use_text = mask, box, text
        self.prompt_encoder = build_prompt_encoder(sam)
        self.mask_decoder = build_mask_decoder(sam)
        if text:
            self.text_layer_weights = nn.Parameter(torch.zeros(shape.layers))
            self.text_proj = nn.Linear(shape.width, sam.channels)
        self._freeze_unreachable()

    def start_from(self, sam: Sam) -> None:
        """Copies a trained SAM's prompt encoder and mask decoder."""
        self.prompt_encoder.load_state_dict(sam.prompt_encoder.state_dict())
        self.mask_decoder.load_state_dict(sam.mask_decoder.state_dict())

    def forward(self, coarse: Tensor, batch: HeadBatch) -> Tensor:
        """`coarse`: float32 [K, S, S]."""
        return self.refine(coarse, batch, self.text_tokens(batch, len(coarse)))

    def refine(
        self, coarse: Tensor, batch: HeadBatch, text: tuple[Tensor, Tensor], features: Tensor | None = None
    ) -> Tensor:
        """One pass over all objects of all images; float32 also under autocast. -> logits [K, 4e, 4e].

        `coarse`: float32 [K, S, S]; `text`: what `text_tokens` gave; `features`: float [K, Ce, e, e], added to the
        dense prompts. ValueError: the batch has no image embeddings.
        """
        if batch.embeddings is None or batch.sam_boxes is None:
            raise ValueError("the refiner needs SAM's image embeddings and boxes, this batch has none")
        coarse = coarse.to(torch.promote_types(coarse.dtype, torch.float32))
        if not len(coarse):
            return coarse.new_zeros((0, self.sam.mask_size, self.sam.mask_size))
        with torch.autocast(coarse.device.type, enabled=False):  # eight bits of a coordinate are no coordinate
            sparse, dense = self._prompts(coarse, batch, batch.sam_boxes)
            position = self.prompt_encoder.get_dense_pe().to(dense.dtype)
        counts, tokens = text
        image = batch.embeddings.to(dense.dtype)[batch.sample_of_object] + dense
        image = image if features is None else image + features
        return self._decode(image, position, sparse, tokens, counts).to(coarse.dtype)

    def _decode(self, image: Tensor, position: Tensor, sparse: Tensor, text: Tensor, counts: Tensor) -> Tensor:
        """segment_anything's `MaskDecoder.forward(multimask_output=False)` for objects of several images at once.

        The original repeats one image's embedding for all its prompts; here each object comes with its own.
        `image`: [K, Ce, e, e], dense prompts added; `position`: [1, Ce, e, e]; `sparse`: [K, 2 or 0, Ce]; `text`:
        [K, most, Ce], of which `counts` [K] are each object's and the others padding.
        Returns the first mask's logits [K, 4e, 4e]; the other masks and the quality estimate are not computed.
        """
        decoder = self.mask_decoder
        objects, channels, side, _ = image.shape
        learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(objects, -1, -1)
        tokens = torch.cat([learned, sparse, text], dim=1)
        before, most = tokens.shape[1] - text.shape[1], text.shape[1]
        real = torch.arange(-before, most, device=counts.device) < counts[:, None] if most else None
        tokens, image = two_way(decoder.transformer, image, position, tokens, real)
        image = decoder.output_upscaling(image.transpose(1, 2).reshape(objects, channels, side, side))
        kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1])  # token 0 is the quality's, 1 the single mask's
        return torch.einsum("kc,kcyx->kyx", kernel, image)

    def _prompts(self, coarse: Tensor, batch: HeadBatch, sam_boxes: list[Box]) -> tuple[Tensor, Tensor]:
        """Sparse prompts [K, 2 or 0, Ce] of the box and dense ones [K, Ce, e, e] of the mask."""
        boxes = prompt_boxes(coarse, batch, sam_boxes) if self.use_box else None
        masks = prompt_masks(coarse, batch, sam_boxes, self.sam)[:, None] if self.use_mask else None
        sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=masks)
        # Without prompts the encoder can not know how many objects there are and answers for one.
        return sparse.expand(len(coarse), -1, -1), dense.expand(len(coarse), -1, -1, -1)

    def text_tokens(self, batch: HeadBatch, objects: int) -> tuple[Tensor, Tensor]:
        """How many text prompts each object has, int64 [K], and the prompts [K, most, Ce], zeros after the last."""
        if not self.use_text or not objects:
            empty = torch.zeros(objects, dtype=torch.int64, device=batch.hidden_object.device)
            return empty, batch.hidden.new_zeros((objects, 0, self.sam.channels))
        mixed = torch.einsum("m,tmd->td", self.text_layer_weights.softmax(0), batch.hidden)
        counts = torch.tensor(batch.tokens).to(mixed.device, non_blocking=True)
        order = batch.hidden_object.argsort(stable=True)  # tokens of one object side by side, in reading order
        owner = batch.hidden_object[order]
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        projected = self.text_proj(mixed[order])
        text = projected.new_zeros((objects, max(batch.tokens, default=0), self.sam.channels))
        return counts, text.index_put((owner, place), projected)

    def _freeze_unreachable(self) -> None:
        """What no loss can reach is not trained: no weight decay for it, no unused parameter to a parallel trainer."""
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        unreachable = [decoder.iou_prediction_head, decoder.output_hypernetworks_mlps[1:]]
        unreachable += [encoder.point_embeddings[:2], encoder.not_a_point_embed]
        unreachable.append(encoder.no_mask_embed if self.use_mask else encoder.mask_downscaling)
        if not self.use_box:
            unreachable.append(encoder.point_embeddings[2:])
        for module in unreachable:
            module.requires_grad_(False)
        for name, parameter in decoder.transformer.named_parameters():
            if name.endswith("k_proj.bias"):  # it adds the same to all scores of a query: softmax does not see it,
                parameter.requires_grad_(False)  # and the optimiser would blow its rounding errors up to full steps


def prompt_masks(coarse: Tensor, batch: HeadBatch, sam_boxes: list[Box], sam: SamConfig) -> Tensor:
    """Mask prompts [K, 4e, 4e] in SAM's frame from coarse logits [K, S, S] in the LMM's.

    The paper crops the image's part, resizes it to the image's size in SAM's input (bilinear), pads that to the whole
    input with min(-1, the object's least logit), and shrinks to 4e x 4e (bilinear). All of it is linear in the logits
    and acts on rows and columns alone, so the same result, up to rounding, is Y · logits · Xᵀ + pad · (1 - y xᵀ) with
    two small matrices per sample, whose row sums y, x say how much of a pixel is image. No full-size mask exists.
    """
    side = coarse.shape[-1]
    parts = [box.scaled(side) for box in batch.lmm_boxes]
    rows, columns = [], []
    for part, shown in zip(parts, sam_boxes, strict=True):
        rows.append(_axis(part.top, part.height, side, shown.height, sam.image_size, sam.mask_size))
        columns.append(_axis(part.left, part.width, side, shown.width, sam.image_size, sam.mask_size))
    y, x = (torch.stack(each).to(coarse.dtype).to(coarse.device, non_blocking=True) for each in (rows, columns))
    y, x = y[batch.sample_of_object], x[batch.sample_of_object]
    inside = y.sum(-1, keepdim=True) @ x.sum(-1, keepdim=True).transpose(1, 2)
    return y @ coarse @ x.transpose(1, 2) + _pad_value(coarse, parts, batch.sample_of_object) * (1 - inside)


def _pad_value(coarse: Tensor, parts: list[Box], sample_of_object: Tensor) -> Tensor:
    """[K, 1, 1]: min(-1, the least logit inside the image), per object, so that no object depends on its neighbours."""
    shown = torch.zeros((len(parts), *coarse.shape[1:]), dtype=torch.bool)
    for mask, part in zip(shown, parts, strict=True):
        mask[part.top : part.top + part.height, part.left : part.left + part.width] = True
    outside = ~shown.to(coarse.device, non_blocking=True)[sample_of_object]
    # Detached: the padding is a constant of the frame, nothing to be learned.
    return coarse.detach().masked_fill(outside, 0.0).amin((-2, -1), keepdim=True).clamp(max=-1.0)


@lru_cache(maxsize=512)  # 128 KB each at the paper's sizes
def _axis(start: int, length: int, source: int, shown: int, frame: int, target: int) -> Tensor:
    """One axis of `prompt_masks`, float64 [target, source]: the CPU matrix of crop, resize, pad with zeros, resize."""
    unit = torch.eye(source, dtype=torch.float64)[
        None, :, start : start + length
    ]  # each source pixel as a signal of its own
    resized = F.interpolate(unit, size=shown, mode="linear", align_corners=False)
    padded = F.pad(resized, (0, frame - shown))
    return F.interpolate(padded, size=target, mode="linear", align_corners=False)[0].T.contiguous()


@torch.no_grad()
def prompt_boxes(coarse: Tensor, batch: HeadBatch, sam_boxes: list[Box]) -> Tensor:
    """Box prompts [K, 4] in pixels of SAM's square from coarse logits [K, S, S]; no gradient.

    As in the paper: around the logits above 0 at the image's own size, right and lower edge one pixel further; the
    whole image where there are none; then scaled to the image's size in SAM's input.
    """
    boxes = coarse.new_zeros((len(coarse), 4))
    sizes = [(box.width / w, box.height / h) for box, (h, w) in zip(sam_boxes, batch.image_sizes, strict=True)]
    scales = torch.tensor(sizes, dtype=coarse.dtype).to(coarse.device, non_blocking=True).repeat(1, 2)
    for sample, (height, width) in enumerate(batch.image_sizes):
        objects = batch.objects_of(sample)
        masks = crop_resize(coarse[objects], batch.lmm_boxes[sample], (height, width)) > 0
        boxes[objects] = mask_boxes(masks).to(coarse) * scales[sample]
    return boxes


def mask_boxes(masks: Tensor) -> Tensor:
    """bool [n, h, w] -> int64 [n, 4] (x1, y1, x2, y2), the last two exclusive; the whole image for an empty mask."""
    height, width = masks.shape[-2:]
    columns, rows = masks.any(-2).byte(), masks.any(-1).byte()
    x1, y1 = columns.argmax(-1), rows.argmax(-1)
    x2, y2 = width - columns.flip(-1).argmax(-1), height - rows.flip(-1).argmax(-1)
    return torch.stack([x1, y1, x2, y2], dim=-1)  # of an empty mask every argmax is 0: the whole image by itself
