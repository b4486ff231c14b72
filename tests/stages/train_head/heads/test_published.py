"""Published F-LMM checkpoints: what is read, what is refused, and that nothing of them is lost or run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from manifests.errors import ModelError
from stages.extract.sam import SAM_PRESETS
from stages.train_head.heads.base import PriorShape
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead
from stages.train_head.heads.published import (
    LICENCE,
    load_published,
    published_names,
    published_shape,
    read_published,
    to_published,
)
from tests.stages.train_head.heads.batches import SAM, SHAPE
from tests.stages.train_head.heads.published import published_weights

Weights = dict[str, torch.Tensor]


def weights_of(**sizes: int) -> Weights:
    own = {"channels": SHAPE.channels, "layers": SHAPE.layers, "width": SHAPE.width, "base": 4}
    return published_weights(**{**own, **sizes}, sam=SAM)


def make_head(**config: Any) -> GroundingHead:
    torch.manual_seed(7)
    return GroundingHead(SHAPE, GroundingConfig(**{"base_width": 4, "sam": SAM, **config}))


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SAVED: dict[str, Callable[[Weights, Path], None]] = {
    "bare.pth": torch.save,
    "wrapped.pth": lambda w, f: torch.save({"state_dict": w, "meta": {"epoch": 8, "time": "now", "seed": None}}, f),
    "old-format.pth": lambda w, f: torch.save(w, f, _use_new_zipfile_serialization=False),
    "tensors.safetensors": save_file,
}


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_goes_through_bit_for_bit(name: str, tmp_path: Path) -> None:
    weights, file, head = weights_of(), tmp_path / name, make_head()
    selector = {key: value.clone() for key, value in head.selector.state_dict().items()}
    SAVED[name](weights, file)
    record = load_published(head, file)
    assert same(to_published(head), weights)
    assert same(head.selector.state_dict(), selector) and record["selector"].startswith("untrained")
    assert torch.equal(head.refiner.text_proj.weight, weights["text_proj.weight"])
    assert torch.equal(head.mask_head.conv_seg.bias, weights["mask_head.conv_seg.bias"])
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() and record["source"] == name
    assert record["licence"] == LICENCE and record["paper"] == "arXiv 2406.05821" and record["converter"] == 1
    assert record["converted"]["tensors"] == len(weights)
    assert json.loads(json.dumps(record)) == record


def test_the_names_and_sizes_of_the_published_heads(tmp_path: Path) -> None:
    with torch.device("meta"):
        weights = published_weights(channels=1024, layers=32, width=4096, base=64, sam=SAM_PRESETS["vit_l"])
    assert weights.keys() == published_names()
    shape = published_shape(weights)
    assert (shape.channels, shape.layers, shape.width, shape.base_width) == (1024, 32, 4096, 64)
    assert shape.sams == ["vit_b", "vit_l", "vit_h"] and published_shape(weights_of()).sams == []
    with torch.device("meta"):
        paper = GroundingHead(PriorShape(channels=1024, layers=32, width=4096), GroundingConfig())
    assert {n: v.shape for n, v in to_published(paper).items()} == {n: v.shape for n, v in weights.items()}


def rename(weights: Weights) -> None:
    weights["text_projection.weight"] = weights.pop("text_proj.weight")


def add(weights: Weights) -> None:
    weights |= {f"llm.layers.{i}.weight": torch.zeros(1) for i in range(30)}


def drop(weights: Weights) -> None:
    del weights["text_layer_weights"], weights["sam.model.mask_decoder.iou_token.weight"]


def reshape(weights: Weights) -> None:
    weights["mask_head.conv_seg.bias"] = torch.zeros(3)
    weights["sam.model.mask_decoder.iou_token.weight"] = torch.zeros(1, SAM.channels, dtype=torch.int64)


def flatten(weights: Weights) -> None:
    weights["text_proj.weight"] = weights["text_proj.weight"].flatten()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename, ["missing: text_proj.weight", "unknown: text_projection.weight"]),
        (add, ["unknown: llm.layers.0.weight, ", "and 22 more"]),
        (drop, ["missing: sam.model.mask_decoder.iou_token.weight, text_layer_weights"]),
        (reshape, ["conv_seg.bias float32 [3] instead of [1]", "iou_token.weight int64 [1, 16] instead of [1, 16]"]),
        (flatten, ["text_proj.weight is [320], too few axes"]),
    ],
)  # fmt: skip
def test_misfits_are_listed_and_the_head_stays_as_it_is(
    change: Callable[[Weights], None], says: list[str], tmp_path: Path
) -> None:
    weights, head, file = weights_of(), make_head(), tmp_path / "flmm.pth"
    before = {name: value.clone() for name, value in head.state_dict().items()}
    change(weights)
    torch.save(weights, file)
    with pytest.raises(ModelError) as refused:
        load_published(head, file)
    assert [part for part in [str(file), *says] if part not in str(refused.value)] == []
    assert len(str(refused.value).splitlines()) == 1
    assert same(head.state_dict(), before)


def test_other_sizes_are_named_once_each(tmp_path: Path) -> None:
    file = tmp_path / "flmm.pth"
    torch.save(weights_of(channels=8, width=24, base=2), file)
    with pytest.raises(ModelError, match="channels 8 instead of 6, width 24 instead of 20, base_width 2 instead of 4"):
        load_published(make_head(), file)
    torch.save(weights_of(), file)
    with pytest.raises(ModelError, match="input_size 64 instead of 32"):
        load_published(make_head(input_size=32), file)


@pytest.mark.parametrize("config", [{"refiner": False}, {"prompt_text": False}])
def test_a_head_without_the_published_parts_is_refused(config: dict[str, bool], tmp_path: Path) -> None:
    torch.save(weights_of(), tmp_path / "flmm.pth")
    with pytest.raises(ModelError, match="use --head unet-sam"):
        load_published(make_head(**config), tmp_path / "flmm.pth")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(zipped: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "evil.pth", tmp_path / "mark"
    torch.save({"state_dict": weights_of(), "meta": Evil(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ModelError, match=r"is refused: code would have to run to unpickle it \(posix.system\)"
    ) as refused:
        read_published(file)
    assert len(str(refused.value).splitlines()) == 1
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()  # it would have run


def zip_of_text(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "no tensors")


def torn(file: Path) -> None:
    torch.save(weights_of(), file)
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("a.pth", lambda f: f.write_text("hello there"), "no checkpoint"),
        ("a.pth", lambda f: f.write_text("<!DOCTYPE html>"), "no checkpoint"),
        ("a.pth", lambda f: f.write_bytes(b""), "no checkpoint"),
        ("a.pth", lambda f: f.write_bytes(pickle.dumps({"a": Evil(f)}, protocol=4)), "no checkpoint"),
        ("a.pth", zip_of_text, "no checkpoint"),
        ("a.pth", torn, "no checkpoint"),
        ("a.safetensors", lambda f: f.write_text("hello there"), "no checkpoint"),
        ("a.pth", lambda f: torch.save(torch.ones(2), f), "holds no state dict, neither"),
        ("a.pth", lambda f: torch.save({"state_dict": {}}, f), "holds no state dict"),
        ("a.pth", lambda f: torch.save({"epoch": 3, "w": torch.ones(1)}, f), "other things in it: 'epoch' (int)"),
        ("a.pth", lambda f: None, "there is no checkpoint"),
        ("a.pth", lambda f: f.mkdir(), "there is no checkpoint"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_in_one_line(
    name: str, write: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ModelError) as refused:
        read_published(tmp_path / name)
    assert says in str(refused.value) and len(str(refused.value).splitlines()) == 1
