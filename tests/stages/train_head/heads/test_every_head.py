"""What every head of the registry promises: sizes, independence of neighbours, gradients, storing, odd batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.extract.sam import SAM_PRESETS
from stages.train_head.heads import HEADS
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, PriorShape
from stages.train_head.heads.checkpoint import load_head, save_head
from tests.stages.train_head.heads.batches import SAM, SAMPLE, SHAPE, TOKENS, make_batch

SMALL: dict[str, dict[str, Any]] = {
    "unet-sam": {"input_size": 16, "base_width": 4, "sam": SAM},
    "fusion-sam": {"input_size": 16, "width": 8, "sam": SAM},
    "unet": {"input_size": 16, "base_width": 4},
    "linear": {"input_size": 16},
    "localization-heads": {"input_size": 16, "refiner": True, "sam": SAM},
}
LLAVA_7B = PriorShape(channels=1024, layers=32, width=4096)


def make(name: str) -> Head:
    """An untrained small head, none of whose weights is exactly 0; the training-free one as if it had chosen."""
    torch.manual_seed(0)
    head = HEADS[name](SHAPE, HEADS[name].Config(**SMALL[name]))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    if name == "localization-heads":
        head.chosen.copy_(torch.tensor([0, 2, 5]))  # type: ignore[operator, union-attr]
    return head.eval()


def part(batch: HeadBatch, objects: list[int]) -> HeadBatch:
    """The same samples with these objects alone, in this order."""
    row = {k: new for new, k in enumerate(objects)}
    tokens = [t for t, k in enumerate(batch.hidden_object.tolist()) if k in row]
    return replace(
        batch,
        attention=batch.attention[objects],
        hidden=batch.hidden[tokens],
        hidden_object=torch.tensor([row[int(batch.hidden_object[t])] for t in tokens], dtype=torch.int64),
        sample_of_object=batch.sample_of_object[objects],
    )


def masks_of(output: HeadOutput) -> list[torch.Tensor]:
    return [output.coarse] if output.refined is None else [output.coarse, output.refined]


every_head = pytest.mark.parametrize("name", SMALL)


def test_every_head_of_the_registry_is_tested_here() -> None:
    assert set(SMALL) == set(HEADS)


@every_head
def test_sizes_are_as_announced(name: str) -> None:
    head, batch = make(name), make_batch()
    output = head(batch)
    assert output.coarse.shape == (len(SAMPLE), *[head.coarse_size(6)] * 2)
    assert (output.refined is None) == (head.refined_size is None)
    assert output.refined is None or output.refined.shape == (len(SAMPLE), *[head.refined_size] * 2)
    assert output.keyword is None or output.keyword.shape == (len(batch.answer_hidden),)
    assert all(masks.dtype == torch.float32 and masks.isfinite().all() for masks in masks_of(output))


@every_head
@pytest.mark.parametrize("objects", [[3], [2, 1, 4, 6], [4]], ids=["one", "some", "one without tokens"])
def test_an_object_does_not_depend_on_its_neighbours(name: str, objects: list[int]) -> None:
    assert TOKENS[4] == 0
    head, batch = make(name), make_batch()
    for together, alone in zip(masks_of(head(batch)), masks_of(head(part(batch, objects))), strict=True):
        torch.testing.assert_close(together[objects], alone, atol=2e-5, rtol=1e-5)


@every_head
def test_no_objects_at_all(name: str) -> None:
    head = make(name)
    output = head(part(make_batch(), []))
    assert all(len(masks) == 0 for masks in masks_of(output))
    assert output.coarse.shape[1:] == (head.coarse_size(6), head.coarse_size(6))


@every_head
def test_the_loss_reaches_every_trainable_weight(name: str) -> None:
    head = make(name).train()
    output = head(make_batch())
    parts = [*masks_of(output), *([] if output.keyword is None else [output.keyword])]
    if not any(p.requires_grad for p in head.parameters()):
        assert name == "localization-heads"
        return
    sum(each.square().mean() for each in parts).backward()
    unreached = [n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unreached == []


@every_head
def test_a_stored_head_is_the_same_head(name: str, tmp_path: Path) -> None:
    head, batch = make(name), make_batch()
    save_head(head, tmp_path)
    loaded = load_head(tmp_path)
    assert (type(loaded), loaded.config, loaded.shape) == (type(head), head.config, SHAPE)
    for before, after in zip(masks_of(head(batch)), masks_of(loaded(batch)), strict=True):
        assert torch.equal(before, after)


@every_head
def test_it_runs_in_bfloat16(name: str) -> None:
    head, batch = make(name), make_batch()
    exact = head(batch).coarse
    with torch.autocast("cpu", torch.bfloat16):
        output = head(batch)
    assert all(masks.isfinite().all() for masks in masks_of(output))
    assert ((output.coarse > 0) == (exact > 0)).float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("unet", 7.7e6, 7.8e6), ("linear", 5e3, 6e3), ("localization-heads", 0, 0), ("fusion-sam", 5e6, 8e6)],
)
def test_parameters_at_the_shapes_of_llava(name: str, least: float, most: float) -> None:
    with torch.device("meta"):
        head = HEADS[name](LLAVA_7B, HEADS[name].Config())
    assert least <= sum(p.numel() for p in head.parameters()) <= most


def test_the_fusion_head_is_no_larger_than_the_one_it_is_meant_to_beat() -> None:
    def parameters(name: str, shape: PriorShape, values: dict[str, Any]) -> int:
        with torch.device("meta"):
            head = HEADS[name](shape, HEADS[name].Config(**values))
        return sum(p.numel() for p in head.parameters())

    tiny, names = PriorShape(channels=30, layers=5, width=192), ("fusion-sam", "unet-sam")
    fusion, unet = (parameters(n, tiny, HEADS[n].PRESETS["demo"] | {"sam": SAM_PRESETS["tiny"]}) for n in names)
    assert fusion <= unet
    fusion, unet = (parameters(n, LLAVA_7B, {}) for n in names)
    assert fusion <= unet
