"""Training from the cache alone: deterministic, learning, and closed to the LMM and the images."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.priors import Priors
from manifests.masks import decode
from pipeline.train_head import TrainHead, build
from stages.train_head.data import prefetch, read_batch, targets_of
from stages.train_head.heads import load_head
from stages.train_head.trainer import TrainConfig, epoch_order, rate, train, validate
from tests.helpers import cli


def trained(cache: Path, seed: int, **options) -> tuple[torch.nn.Module, list[float]]:
    priors = Priors.open(cache)
    head, _ = build(TrainHead(cache=cache, seed=seed), priors)
    losses: list[float] = []
    config = TrainConfig(seed=seed, validate=0, lr=1e-3, **options)
    train(head, priors, config, on_step=lambda news: losses.append(news["loss"]) if "loss" in news else None)
    return head, losses


def test_the_same_seed_gives_the_same_head_and_another_one_does_not(small_cache: Path) -> None:
    (a, losses_a), (b, losses_b), (c, _) = (trained(small_cache, seed, epochs=1) for seed in (3, 3, 4))
    assert losses_a == losses_b
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


def test_a_few_epochs_learn(small_cache: Path) -> None:
    _, losses = trained(small_cache, 0, epochs=12)
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])


def test_neither_the_lmm_nor_an_image_is_opened(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import PIL.Image
    import transformers

    def forbidden(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("training opened an image or a language model")

    cache = shutil.copytree(small_cache, tmp_path / "cache")
    monkeypatch.setattr(PIL.Image, "open", forbidden)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", forbidden)
    cli("train-head", "--cache", cache, "--out", tmp_path / "head", "--epochs", "1")
    record = json.loads((tmp_path / "head" / "training.json").read_text())
    assert record["steps"] == record["epochs"][-1]["epoch"] * math.ceil(20 / 8)
    assert record["objects_per_s"] > 0 and 0 <= record["data_wait_share"] <= 1
    assert load_head(tmp_path / "head").shape.channels == 30


def test_validation_equals_a_plain_loop(small_cache: Path, small_head: Path) -> None:
    """cIoU from one sample at a time, masks enlarged by torch, sums of whole numbers."""
    from stages.train_head.heads.base import to_image_masks

    priors, head = Priors.open(small_cache), load_head(small_head)
    indices = [i for i, s in enumerate(priors.samples) if s.split == "val" and s.task == "referring"]
    inter = union = 0
    for index in indices:
        batch = read_batch(priors, [index], embeddings=True)
        assert batch is not None
        with torch.no_grad():
            logits = to_image_masks(head(batch.inputs), batch.inputs)[0].refined
        assert logits is not None
        for mask, described in zip(logits, priors.samples[index].objects, strict=True):
            a, b = mask.numpy() > 0, decode(described.mask)
            inter, union = inter + int((a & b).sum()), union + int((a | b).sum())
    found = validate(head, priors, indices, 3, "cpu")
    assert found["val_ciou_refined"] == pytest.approx(inter / union, abs=2e-3)  # batches round at the threshold


def test_targets_hold_the_masks_and_only_narratives_teach_keywords(small_cache: Path, small_head: Path) -> None:
    priors, head = Priors.open(small_cache), load_head(small_head)
    tasks = [s.task for s in priors.samples]
    indices = [tasks.index("referring"), tasks.index("narrative")]
    batch = read_batch(priors, indices, embeddings=True)
    assert batch is not None
    targets = targets_of(priors, batch, head)
    narrative = priors.read(indices[1])
    assert narrative is not None
    assert targets.keyword.tolist() == (narrative.answer_object >= 0).tolist()
    assert len(batch.inputs.answer_hidden) == len(narrative.answer_ids)
    objects = [o for i in indices for o in priors.samples[i].objects]
    assert len(targets.coarse.mask) == len(objects) == len(batch.inputs.attention)
    assert targets.refined is not None
    for k, described in enumerate(objects):
        share = decode(described.mask).mean()
        frame = targets.refined.mask[k].sum() / targets.refined.valid[k].sum()
        assert abs(float(frame) - share) < 0.02


def test_rate_warms_up_and_ends_at_zero() -> None:
    rates = [rate(step, 100, 0.1) for step in range(101)]
    assert rates[9] == 1 and rates[0] == pytest.approx(0.1) and rates[100] == pytest.approx(0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_every_epoch_sees_every_sample_once_in_another_order() -> None:
    first, second = epoch_order(list(range(50)), 0, 0), epoch_order(list(range(50)), 0, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_prefetch_keeps_order_raises_errors_and_can_be_left() -> None:
    assert list(prefetch(iter(range(20)), depth=2)) == list(range(20))

    def failing():
        yield 1
        raise RuntimeError("broken disk")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="broken disk"):
        next(items)
    for item in prefetch(iter(range(1000))):
        if item == 3:
            break


def test_ranges_are_checked() -> None:
    for bad in ({"epochs": 0}, {"lr": -1.0}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)
