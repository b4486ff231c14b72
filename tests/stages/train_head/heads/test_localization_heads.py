"""The training-free head against plain loops: flood fill, entropy, Gaussian average, votes, threshold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.priors import Priors
from manifests.errors import ModelError
from manifests.masks import decode
from stages.extract.sam import SAM_PRESETS, build_sam, load_sam
from stages.train_head.data import as_box, read_batch
from stages.train_head.heads.base import PriorShape, to_image_masks
from stages.train_head.heads.checkpoint import load_head, save_head
from stages.train_head.heads.localization_heads import (
    THRESHOLDS,
    LocalizationConfig,
    LocalizationHeads,
    attentive,
    ious,
    regions,
    smooth,
    spatial_entropy,
)
from stages.train_head.targets import FrameTargets, frame_targets
from stages.train_head.trainer import trainable
from tests.stages.train_head.heads.batches import SAM, SHAPE, make_batch

CONFIG = LocalizationConfig(input_size=16, sam=SAM)


def flooded(binary: np.ndarray) -> list[int]:
    """Sizes of the regions of a bool array, by flood fill to all eight neighbours."""
    left = {(int(y), int(x)) for y, x in np.argwhere(binary)}
    sizes = []
    while left:
        edge, size = [left.pop()], 0
        while edge:
            y, x = edge.pop()
            size += 1
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            edge += around
        sizes.append(size)
    return sizes


def plain_entropy(values: np.ndarray, inside: np.ndarray) -> tuple[float, int]:
    sizes = flooded((values > values[inside].mean()) & inside)
    if not sizes:
        return math.inf, 0
    return -sum(s / sum(sizes) * math.log(s / sum(sizes)) for s in sizes), sum(sizes)


def plain_smooth(values: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    result = np.zeros(values.shape)
    for y, x in np.ndindex(values.shape):
        total = weight = 0.0
        for v, u in np.argwhere(inside):
            if max(abs(v - y), abs(u - x)) <= 3 * sigma:
                w = math.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * sigma**2))
                total, weight = total + w * float(values[v, u]), weight + w
        result[y, x] = total / max(weight, 1e-12)
    return result


def plain_total(maps: np.ndarray, inside: np.ndarray, side: int) -> np.ndarray:
    """Maps [k, h, w], each over its mean, smoothed, summed, upsampled to side x side."""
    total = torch.tensor(sum(plain_smooth(each / each.mean(), inside, 1.0) for each in maps))
    return torch.nn.functional.interpolate(total[None, None], size=side, mode="bilinear")[0, 0].numpy()


def test_regions_and_entropy_against_flood_fill() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(40, 9, 11, generator=random) ** torch.arange(1, 41)[:, None, None].div(8)
    spiral = torch.ones(9, 11)  # a long path takes the most rounds to be labelled
    for row in range(1, 9, 2):
        spiral[row, slice(0, -1) if row % 4 == 1 else slice(1, None)] = 0
    maps = torch.cat([maps, spiral[None], torch.zeros(1, 9, 11), torch.ones(1, 9, 11)])
    inside = torch.zeros(9, 11, dtype=torch.bool)
    inside[1:8] = True
    entropy, area = spatial_entropy(maps[:, None], inside)
    assert entropy.shape == area.shape == (43, 1)
    for each, found, cells in zip(maps.numpy(), entropy[:, 0].tolist(), area[:, 0].tolist(), strict=True):
        assert (found, cells) == pytest.approx(plain_entropy(each, inside.numpy()))
    for each in maps > 0.3:
        labels = regions(each[None])[0]
        assert torch.equal(labels > 0, each)
        assert sorted(Counter(labels[each].tolist()).values()) == sorted(flooded(each.numpy()))


def test_a_spot_has_less_entropy_than_noise() -> None:
    spot = torch.zeros(12, 12)
    spot[3:6, 4:7] = 1
    noise = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.8
    entropy, _ = spatial_entropy(torch.stack([spot, noise.float()]), torch.ones(12, 12, dtype=torch.bool))
    assert entropy[0] == 0 < 1 < entropy[1]


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_smoothing_against_a_loop(sigma: float) -> None:
    maps = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(2, 1, 8, 8)
    inside[0, :, 1:7] = 1
    inside[1, :, :, 2:] = 1
    found = smooth(maps, inside, sigma)
    for n in range(2):
        expected = plain_smooth(maps[n, 0].numpy(), inside[n, 0].bool().numpy(), sigma)
        np.testing.assert_allclose(found[n, 0].numpy(), expected, atol=1e-5)


def test_the_elbow_of_the_masses() -> None:
    mass = torch.tensor([0.02, 0.9, 0.03, 0.8, 0.01, 0.05, 0.85, 0.04]).double()
    kept = attentive(mass, 1).tolist()
    order = sorted(range(8), key=lambda i: -mass[i])
    curve = mass[order].tolist()
    below = [curve[0] + (curve[-1] - curve[0]) * i / 7 - value for i, value in enumerate(curve)]
    assert kept == sorted(order[: below.index(max(below)) + 1]) == [1, 3, 5, 6]
    assert attentive(mass, 6).tolist() == sorted(order[:6])


def test_logits_against_a_loop_over_objects() -> None:
    head, batch = LocalizationHeads(SHAPE, CONFIG).eval(), make_batch()
    head.chosen.copy_(torch.tensor([1, 2, 5]))
    head.threshold.fill_(1.5)
    coarse = head(batch).coarse
    for k, sample in enumerate(batch.sample_of_object.tolist()):
        large = batch.lmm_boxes[sample].scaled(16)
        total = plain_total(batch.attention[k, [1, 2, 5]].numpy(), part_of(batch.lmm_boxes[sample].as_tuple(), 6), 16)
        shown = (slice(large.top, large.top + large.height), slice(large.left, large.left + large.width))
        expected = np.log(np.maximum(total[shown] / total[shown].mean(), 1e-3) / 1.5)
        np.testing.assert_allclose(coarse[k][shown].numpy(), expected, atol=1e-4)


def test_an_even_map_is_even_up_to_the_edge_of_the_image() -> None:
    head, batch = LocalizationHeads(SHAPE, CONFIG).eval(), make_batch()
    head.chosen.copy_(torch.tensor([1, 2, 5]))
    coarse = head(replace(batch, attention=torch.ones_like(batch.attention))).coarse
    for k, sample in enumerate(batch.sample_of_object.tolist()):
        part = batch.lmm_boxes[sample].scaled(16)
        shown = coarse[k, part.top : part.top + part.height, part.left : part.left + part.width]
        torch.testing.assert_close(shown, torch.zeros_like(shown), atol=1e-5, rtol=0)  # log of 1, the threshold


def test_ious_against_counting() -> None:
    random = torch.Generator().manual_seed(1)
    values = 6 * torch.rand(3, 2, 7, 7, generator=random)
    frame = FrameTargets(
        mask=(torch.rand(3, 7, 7, generator=random) > 0.6).byte(),
        valid=(torch.rand(3, 7, 7, generator=random) > 0.2).byte(),
    )
    found = ious(values, frame)
    assert found.shape == (3, 2, len(THRESHOLDS))
    for n in range(3):
        cells = [(y, x) for y in range(7) for x in range(7) if frame.valid[n, y, x]]
        truth = {c for c in cells if frame.mask[n][c]}
        for c in range(2):
            for t, threshold in enumerate(THRESHOLDS):
                above = {cell for cell in cells if values[n, c][cell] > threshold}
                assert float(found[n, c, t]) == pytest.approx(len(above & truth) / len(above | truth))


def part_of(box: tuple[int, ...], side: int = 12) -> np.ndarray:
    part, inside = as_box(box).scaled(side), np.zeros((side, side), bool)
    inside[part.top : part.top + part.height, part.left : part.left + part.width] = True
    return inside


def shape_of(priors: Priors) -> PriorShape:
    return PriorShape(channels=priors.channels, layers=priors.layers, width=priors.width)


def test_the_choice_by_entropy_against_loops(small_cache: Path) -> None:
    priors = Priors.open(small_cache)
    indices = trainable(priors)
    head = LocalizationHeads(shape_of(priors), LocalizationConfig(samples=6, candidates=4, input_size=32))
    head.fit(priors, indices)
    read = [priors.read(indices[i * len(indices) // 6]) for i in range(6)]
    mass = np.concatenate([item.attention_mass for item in read if item]).astype(np.float64).mean(0)
    kept = attentive(torch.from_numpy(mass), 3).tolist()
    assert 3 <= len(kept) < 30
    votes: Counter[int] = Counter()
    for item in read:
        assert item is not None
        inside = part_of(item.box)
        for maps in item.attention:
            ranked = sorted(kept, key=lambda c: (*plain_entropy(maps[c].astype(np.float32), inside), c))
            votes.update(ranked[:4])
    assert head.chosen.tolist() == sorted(sorted(kept, key=lambda c: (-votes[c], c))[:3])
    assert float(head.threshold) == 1


def test_the_choice_by_iou_against_loops(small_cache: Path) -> None:
    """The map that is best at its best threshold; then the threshold that is best for it over its mean in the image."""
    priors = Priors.open(small_cache)
    indices, some = trainable(priors)[:2], (19, 2, 21)
    config = LocalizationConfig(maps=1, choose_by="iou", threshold=0, input_size=0, samples=2)
    head = LocalizationHeads(replace(shape_of(priors), channels=3, maps=some), config)
    head.fit(priors, indices)
    objects = []  # of each: some maps smoothed [3, 12, 12], the mask, the image's part
    for index in indices:
        item = priors.read(index)
        assert item is not None
        inside = part_of(item.box)
        masks = np.stack([decode(o.mask) for o in priors.samples[index].objects])
        truth = frame_targets([masks], [as_box(item.box)], 12).mask.bool().numpy()
        for maps, mask in zip(item.attention, truth, strict=True):
            smoothed = np.stack([plain_smooth(each.astype(np.float32), inside, 1.0) for each in maps[list(some)]])
            objects.append((smoothed, mask, inside))

    def quality(channel: int, threshold: float, relative: bool) -> float:
        found = []
        for maps, mask, inside in objects:
            above = (maps[channel] > threshold * (maps[channel][inside].mean() if relative else 1)) & inside
            found.append((above & mask).sum() / max(1, (above | mask).sum()))
        return float(np.mean(found))

    best = max(range(3), key=lambda c: max(quality(c, t, False) for t in THRESHOLDS))
    assert head.chosen.tolist() == [best]
    assert float(head.threshold) == max(THRESHOLDS, key=lambda t: quality(best, t, True))


def test_fitted_stored_loaded_and_shown(small_cache: Path, tmp_path: Path) -> None:
    """With SAM, on some of the cache's maps: the choice is stored, SAM stays as it was, masks come out."""
    priors = Priors.open(small_cache)
    maps = tuple(range(3, 28))
    shape = PriorShape(channels=len(maps), layers=priors.layers, width=priors.width, maps=maps)
    sam = load_sam("tiny")
    values = {"refiner": True, "input_size": 32, "choose_by": "iou", "threshold": 0, "samples": 5}
    head = LocalizationHeads.from_values(shape, {**values, "sam": asdict(SAM_PRESETS["tiny"])})
    head.start_from(sam)
    head.fit(priors, trainable(priors))
    save_head(head, tmp_path)
    loaded = load_head(tmp_path)
    assert isinstance(loaded, LocalizationHeads) and torch.equal(loaded.chosen, head.chosen)
    assert loaded.threshold == head.threshold and loaded.refiner is not None
    kept = loaded.refiner.mask_decoder.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in sam.mask_decoder.state_dict().items())
    batch = read_batch(priors, priors.samples.where(split=["val"])[:3], loaded)
    assert batch is not None
    shown = to_image_masks(loaded(batch.inputs), batch.inputs)
    assert any((masks.coarse > 0).any() for masks in shown)
    assert all(masks.refined is not None and masks.refined.isfinite().all() for masks in shown)


def test_before_the_choice_it_says_so() -> None:
    with pytest.raises(ModelError, match="not chosen"):
        LocalizationHeads(SHAPE, CONFIG)(make_batch())
    LocalizationHeads(SHAPE, CONFIG).start_from(build_sam(SAM))  # no refiner: nothing to take over


def test_attention_that_is_zero_gives_an_empty_mask() -> None:
    head, batch = LocalizationHeads(SHAPE, CONFIG), make_batch()
    head.chosen.copy_(torch.tensor([0, 1, 2]))
    batch.attention[2] = 0
    assert not (head(batch).coarse[2] > 0).any()


@pytest.mark.parametrize(
    "values",
    [{"maps": 0}, {"choose_by": "luck"}, {"candidates": 0}, {"threshold": -1.0}, {"sigma": 0.0}, {"samples": 0}],
)
def test_impossible_configs_name_the_field(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LocalizationConfig(**values)  # type: ignore[arg-type]


def test_more_maps_than_there_are() -> None:
    with pytest.raises(ValueError, match="maps is 7"):
        LocalizationHeads(SHAPE, LocalizationConfig(maps=7))
