"""Training from the cache alone: deterministic, learning, and closed to the LMM and the images."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.priors import Priors
from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.masks import decode
from pipeline.head_options import build
from pipeline.train_head import TrainHead
from stages.train_head.data import prefetch, read_batch, targets_of
from stages.train_head.feed import epoch_order
from stages.train_head.heads import checkpoint
from stages.train_head.heads.base import to_image_masks
from stages.train_head.heads.checkpoint import is_head, load_head
from stages.train_head.recipe import TrainConfig, rate
from stages.train_head.trainer import split_indices, train
from stages.train_head.validation import validate
from tests.helpers import cli, tree


def trained(cache: Path, seed: int, **options) -> tuple[torch.nn.Module, list[float]]:
    priors = Priors.open(cache)
    head, _ = build(TrainHead(cache=cache, seed=seed), priors)
    losses: list[float] = []
    config = TrainConfig(seed=seed, validate=0, lr=1e-3, **options)
    train(head, priors, config, on_step=lambda news: losses.append(news["loss"]))
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
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert record["steps"] == record["validations"][-1]["epoch"] * math.ceil(20 / 8)
    assert record["objects_per_s"] > 0 and 0 <= record["data_wait_share"] <= 1
    assert load_head(tmp_path / "head").shape.channels == 30
    stored = {
        k: sum(p.stat().st_size for p in cache.glob(f"{k}/**/c.*")) for k in ("priors.zarr", "images/images.zarr")
    }
    priors = Priors.open(cache)
    objects, images = sum(s.slots for s in priors.samples), len(set(priors.rows.numbers("image").tolist()))
    assert record["bytes_per_object"] == pytest.approx(stored["priors.zarr"] / objects, abs=1)
    assert record["bytes_per_image"] == pytest.approx(stored["images/images.zarr"] / images, abs=1)
    assert record["failed_samples"] == {"train": 0, "val": 0}
    printed = capsys.readouterr().out
    for shown in (
        f"{record['bytes_per_object']:,.0f} bytes/object",
        f"{record['seconds']['total']:.1f} s;",
        "0 training",
    ):
        assert shown in printed


def test_validation_equals_a_plain_loop(small_cache: Path, small_head: Path) -> None:
    """cIoU from one sample at a time, masks enlarged by torch, sums of whole numbers."""
    priors, head = Priors.open(small_cache), load_head(small_head)
    indices = [i for i, s in enumerate(priors.samples) if s.split == "val" and s.task == "referring"]
    inter = union = 0
    for index in indices:
        batch = read_batch(priors, [index], head)
        assert batch is not None
        with torch.no_grad():
            logits = to_image_masks(head(batch.inputs), batch.inputs)[0].refined
        assert logits is not None
        for mask, described in zip(logits, priors.samples[index].objects, strict=True):
            a, b = mask.numpy() > 0, decode(described.mask)
            inter, union = inter + int((a & b).sum()), union + int((a | b).sum())
    found = validate(head, priors, indices, 3, "cpu")
    assert found["val_ciou_refined"] == pytest.approx(inter / union, abs=2e-3)  # batches round at the threshold


def test_failed_samples_are_misses_of_the_validation_and_are_counted(small_cache: Path, small_head: Path) -> None:
    priors, head = Priors.open(small_cache), load_head(small_head)
    indices = [i for i, s in enumerate(priors.samples) if s.split == "val" and s.task == "referring"]
    failing, rest = indices[0], indices[1:]
    missed = sum(int(decode(o.mask).sum()) for o in priors.samples[failing].objects)
    sums = []  # intersection and union of the others, from one sample at a time
    for index in rest:
        batch = read_batch(priors, [index], head)
        assert batch is not None
        with torch.no_grad():
            mask = to_image_masks(head(batch.inputs), batch.inputs)[0].coarse.numpy() > 0
        truth = np.stack([decode(o.mask) for o in priors.samples[index].objects])
        sums.append(((mask & truth).sum(), (mask | truth).sum()))
    inter, union = np.sum(sums, axis=0)
    priors.failures[failing] = "made to fail"
    found = validate(head, priors, indices, 2, "cpu")
    assert found["val_ciou_coarse"] == pytest.approx(inter / (union + missed), abs=2e-3)
    assert validate(head, priors, [failing], 2, "cpu") == {"val_ciou_coarse": 0, "val_ciou_refined": 0}
    priors.failures[split_indices(priors, "train")[3]] = "made to fail"
    assert train(head, priors, TrainConfig(epochs=1)).failed == {"train": 1, "val": 1}


def test_a_cache_with_nothing_to_train_on_is_refused(small_cache: Path, small_head: Path, tmp_path: Path) -> None:
    priors, head = Priors.open(small_cache), load_head(small_head)
    priors.failures |= dict.fromkeys(split_indices(priors, "train"), "no\nmemory")
    says = r"all 20 samples of the split 'train' failed .*no memory; the cache's splits: train, val, testA, testB"
    with pytest.raises(DatasetError, match=says):
        train(head, priors, TrainConfig())
    write_manifest(tmp_path / "others", (s for s in priors.samples if s.split != "train"), {})
    priors.samples = Samples(tmp_path / "others")
    with pytest.raises(DatasetError, match=r"no sample of the split 'train' \(its splits: val, testA, testB, test\)"):
        train(head, priors, TrainConfig())


def test_a_foreign_out_folder_is_refused_and_stays_as_it_is(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name, text in (("config.json", '{"model_type": "llava"}'), ("model.safetensors", "weights")):
        (checkpoint / name).write_text(text)
    before = tree(checkpoint)
    for out, says in (
        (checkpoint, "not empty and holds no head of this program (but config.json, model.safetensors)"),
        (checkpoint / "config.json", "can not be written (File exists); choose another folder"),
        ("/proc/nowhere", "can not be written"),
    ):
        cli("train-head", "--cache", small_cache, "--out", out, expect=2)
        captured = capsys.readouterr()
        assert says in captured.err.strip().splitlines()[-1] and "step" not in captured.err  # before any training
    assert tree(checkpoint) == before


def test_new_weights_never_lie_beside_an_old_description(
    small_cache: Path, small_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(small_head, tmp_path / "head")

    def killed(file: Path, value: dict[str, object]) -> None:  # after the weights, before the record
        if file.parent == out:
            raise KeyboardInterrupt
        write(file, value)

    write = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", killed)
    cli("train-head", "--cache", small_cache, "--out", out, "--epochs", "1", "--no-refiner", expect=130)
    assert (out / "model.safetensors").exists() and not is_head(out)
    monkeypatch.setattr(checkpoint, "_write", write)
    cli("train-head", "--cache", small_cache, "--out", out, "--epochs", "1", "--no-refiner")  # the same command goes on
    assert is_head(out) and not (out / "state.safetensors").exists()


def test_targets_hold_the_masks_and_only_narratives_teach_keywords(small_cache: Path, small_head: Path) -> None:
    priors, head = Priors.open(small_cache), load_head(small_head)
    tasks = [s.task for s in priors.samples]
    indices = [tasks.index("referring"), tasks.index("narrative")]
    batch = read_batch(priors, indices, head)
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
    first, second = epoch_order(tuple(range(50)), 0, 0), epoch_order(tuple(range(50)), 0, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_prefetch_keeps_order_raises_errors_and_can_be_left() -> None:
    def job(number: int):
        def run() -> int:
            time.sleep(0.002 * (number % 3))
            if number == 7:
                raise RuntimeError("broken disk")
            return number

        return run

    def jobs():
        for number in range(1000):
            begun.append(number)
            yield job(number + 100 * (number > 7))

    begun: list[int] = []
    assert list(prefetch([job(n) for n in range(7)], depth=2)) == list(range(7))
    with pytest.raises(RuntimeError, match="broken disk"):
        list(prefetch([job(n) for n in range(9)]))
    for item in prefetch(jobs()):
        if item == 3:
            break
    assert len(begun) < 20
    assert not [each for each in threading.enumerate() if each.name.startswith("prefetch")]


@pytest.mark.parametrize("name", ["epochs", "lr"])
def test_zero_is_not_the_default(
    name: str, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("train-head", "--cache", small_cache, "--out", tmp_path / "head", f"--{name}", "0", expect=2)
    assert f"error: train-head: {name} must be positive, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--readers", "0"], "--readers 0: must be at least 1"),
        (["--memory-gb", "nan"], "--memory-gb nan: must not be negative"),
        (["--checkpoint-minutes", "-5"], "--checkpoint-minutes -5.0: must not be negative"),
        (["--lr", "inf"], "lr must be positive"),
        (["--device", "banana"], "--device banana: give cuda, cpu or auto"),
        (["--layers", "7"], "--layers 7: the LMM has the layers 0 to 4"),
        (["--layers", "5-3"], "--layers 5-3: give numbers"),
        (["--channels", "31"], "--channels 31: there are 30 maps"),
        (["--channels", "3,99"], "the maps to choose from are 0 to 29"),
        (["--head", "nothing"], "known are unet-sam"),
        (["--head", "no.such:Head"], "can not be imported"),
        (["--head", "linear", "--no-refiner"], "--head linear has no option refiner"),
        (["--option", "width"], "give NAME=VALUE"),
        (["--option", "base_width=wide"], "give a value like its default, 64"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], says: str, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("train-head", "--cache", small_cache, "--out", tmp_path / "head", *flags, expect=2)
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_only_some_maps(small_cache: Path, tmp_path: Path) -> None:
    for flags, maps in ((["--layers", "1,3-4"], [*range(6, 12), *range(18, 30)]), (["--channels", "5,0"], [0, 5])):
        head, _ = build(TrainHead(cache=str(small_cache), **dict([(flags[0][2:], flags[1])])), Priors.open(small_cache))
        assert list(head.shape.maps or ()) == maps
        batch = read_batch(Priors.open(small_cache), [0], head)
        whole = Priors.open(small_cache).read(0)
        assert batch is not None and whole is not None
        assert np.array_equal(batch.inputs.attention.numpy(), whole.attention[:, maps].astype(np.float32))
    out = tmp_path / "head"
    cli("train-head", "--cache", small_cache, "--out", out, "--epochs", "1", "--no-refiner", "--channels", "3")
    assert load_head(out).shape.channels == 3 and len(load_head(out).shape.maps or ()) == 3
    cli("evaluate", "--cache", small_cache, "--head", out, "--out", tmp_path / "evaluation", "--splits", "testB")


def test_ranges_are_checked() -> None:
    for bad in ({"epochs": 0}, {"lr": -1.0}, {"lr": math.nan}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)
