from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import ModelError
from stages.extract.images import Box, centred_box
from stages.extract.sam import SAM_PRESETS, build_sam
from stages.train_head.heads.base import HeadOutput, PriorShape, crop_resize, to_image_masks
from stages.train_head.heads.checkpoint import load_head, save_head
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead
from stages.train_head.targets import frame_targets
from tests.stages.train_head.heads.batches import IMAGE_SIZES, SAM, SAMPLE, SHAPE, blobs, make_batch

CONFIG = GroundingConfig(input_size=16, base_width=4, sam=SAM)


def make_head(config: GroundingConfig = CONFIG) -> GroundingHead:
    torch.manual_seed(0)
    return GroundingHead(SHAPE, config).eval()


def test_output_has_the_announced_sizes() -> None:
    head, batch = make_head(), make_batch()
    output = head(batch)
    side = head.coarse_size(batch.attention.shape[-1])
    assert output.coarse.shape == (len(SAMPLE), side, side)
    assert output.refined is not None
    assert output.refined.shape == (len(SAMPLE), head.refined_size, head.refined_size)
    assert output.keyword.shape == (len(batch.answer_hidden),)
    assert head.coarse_size(20) == 20


def test_without_a_refiner_no_embeddings_are_needed() -> None:
    head = make_head(replace(CONFIG, refiner=False))
    output = head(replace(make_batch(), embeddings=None, sam_boxes=None))
    assert output.refined is None
    assert head.refined_size is None
    head.start_from(build_sam(SAM))  # nothing to take over, and no error
    assert all(masks.refined is None for masks in to_image_masks(output, make_batch()))


def test_the_loss_of_refined_masks_reaches_the_mask_decoder() -> None:
    head = make_head()
    refined = head(make_batch()).refined
    assert refined is not None
    refined.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.mask_head.parameters())


@pytest.mark.parametrize("attention", [torch.rand(7, 5, 6, 6), torch.rand(7, 6, 6, 5)], ids=["channels", "grid"])
def test_attention_of_another_shape_is_refused(attention: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected 6 on a square grid"):
        make_head()(replace(make_batch(), attention=attention))


def test_presets_fit_their_sam() -> None:
    with torch.device("meta"):
        sizes = GroundingHead.PRESETS["demo"] | {"sam": asdict(SAM_PRESETS["tiny"])}
        demo = GroundingHead.from_values(PriorShape(channels=30, layers=5, width=192), sizes)
        paper = GroundingHead.from_values(PriorShape(channels=1024, layers=32, width=4096), {})
    assert (demo.coarse_size(12), demo.refined_size) == (32, 64)
    assert (paper.coarse_size(24), paper.refined_size) == (64, 256)


@pytest.mark.parametrize(
    "values",
    [
        {"input_size": 20},
        {"input_size": -8},
        {"base_width": 0},
        dict.fromkeys(("prompt_mask", "prompt_box", "prompt_text"), False),
    ],
)
def test_impossible_configs_name_the_field(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        GroundingConfig(**values)


def test_saved_and_loaded_heads_give_equal_logits(tmp_path: Path) -> None:
    config = replace(CONFIG, prompt_box=False)
    head, batch = make_head(config), make_batch()
    save_head(head, tmp_path)
    loaded = load_head(tmp_path)
    assert isinstance(loaded, GroundingHead)
    assert (loaded.config, loaded.shape, loaded.training) == (config, SHAPE, False)
    before, after = head(batch), loaded(batch)
    assert torch.equal(before.coarse, after.coarse)
    assert before.refined is not None
    assert after.refined is not None
    assert torch.equal(before.refined, after.refined)
    assert torch.equal(before.keyword, after.keyword)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_head(make_head(), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["selector.extra"] = torch.zeros(1)
    del weights["mask_head.conv_seg.bias"]
    weights["selector.weight"] = torch.zeros(1, 3)
    save_file(weights, file)
    with pytest.raises(ModelError) as error:
        load_head(tmp_path)
    message = str(error.value)
    assert "missing: mask_head.conv_seg.bias" in message
    assert "unknown: selector.extra" in message
    assert "selector.weight [1, 3] instead of [1, 20]" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["config"].update(depth=3), "depth"),
        (lambda d: d["config"].pop("prompt_text"), "missing: ['prompt_text']"),
        (lambda d: d["shape"].pop("width"), "width"),
        (lambda d: d.pop("shape"), "missing: ['shape']"),
        (lambda d: d.update(head="other"), "'other'"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, change, says: str) -> None:
    save_head(make_head(), tmp_path)
    file = tmp_path / "config.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    with pytest.raises(ModelError) as error:
        load_head(tmp_path)
    assert says in str(error.value)


def test_a_save_that_was_cut_off_is_not_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_head(make_head(), tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("stages.train_head.heads.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_head(make_head(), tmp_path)
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_head(tmp_path)


@pytest.mark.parametrize("box", [Box(top=9, left=0, height=30, width=48, size=48), centred_box(50, 70, 48)])
def test_crop_and_resize_pixel_by_pixel(box: Box) -> None:
    """Every image pixel's centre, carried to the square's low-resolution frame, by the definition of bilinear."""
    logits, (height, width) = blobs()[0], (23, 31)
    side = logits.shape[-1]
    top, left = int(box.top * side / box.size), int(box.left * side / box.size)
    rows, columns = int(box.height * side / box.size + 0.5), int(box.width * side / box.size + 0.5)
    actual = crop_resize(logits[None], box, (height, width))[0]
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            upper = logits[top + y0, left + x0] * (1 - u + x0) + logits[top + y0, left + x1] * (u - x0)
            lower = logits[top + y1, left + x0] * (1 - u + x0) + logits[top + y1, left + x1] * (u - x0)
            assert abs(actual[y, x] - (upper * (1 - v + y0) + lower * (v - y0))) < 1e-5


def test_targets_come_back_as_the_masks_they_were_made_from() -> None:
    """A head that predicted its targets perfectly would be right up to half a cell in either frame, not shifted."""
    batch = make_batch()
    height, width = 120, 80
    yy, xx = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (((yy - 70.5) / 30) ** 2 + ((xx - 31.5) / 22) ** 2 < 1)[None]
    sam_box = Box(top=0, left=0, height=128, width=85, size=128)
    lmm_box = centred_box(width, height, 96)
    frames = [frame_targets([disc.numpy()], [box], 32).mask.float() * 2 - 1 for box in (lmm_box, sam_box)]
    output = HeadOutput(coarse=frames[0], refined=frames[1], keyword=torch.zeros(0))
    batch = replace(
        batch,
        sample_of_object=torch.tensor([0]),
        lmm_boxes=[lmm_box],
        sam_boxes=[sam_box],
        image_sizes=[(height, width)],
    )
    (masks,) = to_image_masks(output, batch)
    for logits in (masks.coarse, masks.refined):
        assert logits is not None
        found = logits > 0
        assert (found & disc).sum() / (found | disc).sum() > 0.9
        for axis, truth in ((yy, 70.5), (xx, 31.5)):
            assert abs(axis[found[0]].float().mean() - truth) < 0.5


def test_objects_go_to_their_images_in_order() -> None:
    batch = make_batch()
    output = HeadOutput(
        coarse=torch.arange(len(SAMPLE)).float()[:, None, None].expand(-1, 8, 8), refined=None, keyword=torch.zeros(0)
    )
    masks = to_image_masks(output, batch)
    assert [list(m.coarse.shape[1:]) for m in masks] == [list(size) for size in IMAGE_SIZES]
    assert [m.coarse[:, 0, 0].round().int().tolist() for m in masks] == [[0, 1, 2], [3, 4], [5, 6]]
