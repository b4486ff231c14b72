"""How good is a head so far? cIoU over validation samples, and pictures of a few of its masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from manifests.masks import area, decode
from stages.train_head.data import PriorsLike, as_box, prefetch, read_batch
from stages.train_head.heads.base import Head, crop_resize, to_image_masks
from stages.train_head.team import Team

PANEL = 128  # pixels, the side of one picture


@contextmanager
def evaluating(head: Head) -> Iterator[None]:
    """Without gradients and in eval mode, then as before."""
    was_training = head.training
    head.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        head.train(was_training)


def validate(
    head: Head,
    priors: PriorsLike,
    indices: Sequence[int],
    batch_size: int,
    device: str = "cpu",
    team: Team | None = None,
) -> dict[str, float]:
    """cIoU over the objects of these samples at the images' own sizes, coarse and refined; failed samples miss.

    The workers of a team share the samples; each learns the result.
    """
    team = team or Team()
    sums = torch.zeros(2, 2, dtype=torch.int64, device=device)  # coarse and refined x intersection and union
    mine = list(indices[team.rank :: team.size])
    groups = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    jobs = [partial(read_batch, priors, group, head, device) for group in groups]
    with evaluating(head):
        for group, batch in zip(groups, prefetch(jobs), strict=True):
            missed = [i for i in group if batch is None or i not in batch.indices]
            sums[:, 1] += sum(area(o.mask) for i in missed for o in priors.samples[i].objects)
            if batch is None:
                continue
            inputs = batch.inputs.to(device)
            for index, logits in zip(batch.indices, to_image_masks(head(inputs), inputs), strict=True):
                truth = torch.from_numpy(np.stack([decode(o.mask) for o in priors.samples[index].objects])).to(device)
                for k, predicted in enumerate((logits.coarse, logits.refined)):
                    if predicted is not None:
                        sums[k, 0] += ((predicted > 0) & truth).sum()
                        sums[k, 1] += ((predicted > 0) | truth).sum()
    found = team.add(sums).tolist()
    names = ["coarse", "refined"] if head.refined_size is not None else ["coarse"]
    return {f"val_ciou_{name}": found[k][0] / max(1, found[k][1]) for k, name in enumerate(names)}


def draw_masks(head: Head, priors: PriorsLike, indices: Sequence[int], device: str = "cpu", most: int = 6) -> Tensor:
    """Rows of mean attention, truth, coarse and refined mask, an object each: uint8 [rows·PANEL, columns·PANEL].

    At most so many objects of these samples. No image is opened: training needs the cache alone.
    """
    rows: list[Tensor] = []
    with evaluating(head):
        for index in indices:
            batch = read_batch(priors, [index], head)
            if batch is None:
                continue
            inputs, size = batch.inputs.to(device), (priors.samples[index].height, priors.samples[index].width)
            logits = to_image_masks(head(inputs), inputs)[0]
            attention = crop_resize(inputs.attention.mean(1), as_box(batch.items[0].box), size)
            attention = attention / attention.amax((-2, -1), keepdim=True).clamp(min=1e-12)
            truth = torch.from_numpy(np.stack([decode(o.mask) for o in priors.samples[index].objects])).to(device)
            panels = [attention, truth, logits.coarse.sigmoid()]
            if logits.refined is not None:
                panels.append(logits.refined.sigmoid())
            for k in range(len(truth)):
                rows.append(torch.cat([_panel(panel[k].float()) for panel in panels], dim=1))
                if len(rows) == most:
                    return torch.cat(rows)
    return torch.cat(rows) if rows else torch.zeros((PANEL, 3 * PANEL), dtype=torch.uint8)


def _panel(values: Tensor) -> Tensor:
    """[height, width] in [0, 1] -> uint8 [PANEL, PANEL], inside a grey frame."""
    shown = torch.nn.functional.interpolate(values[None, None], size=(PANEL - 4, PANEL - 4), mode="area")[0, 0]
    return torch.nn.functional.pad((shown * 255).round().clamp(0, 255).byte().cpu(), (2, 2, 2, 2), value=128)
