"""The extract stage on generated scenes: cached equals live, kills, failures, identity, Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.priors import Priors
from cache.store import Store
from manifests.scenes.write import ScenesConfig, write_scenes
from manifests.schema import Sample
from pipeline.runtime import run_units
from stages.extract.capture import AttentionCapture
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMInput, LMMProcessor
from stages.extract.sam import encode_images, load_sam, preprocess_sam
from stages.extract.worker import ExtractionWorker
from tests.cache.caches import make, root_of
from tests.helpers import FEW, cli, tree

REPO = Path(__file__).parents[3]
FLOAT16 = 5e-4  # relative rounding of a value of a scaled map or state, see cache.scaling


def live_input(lmm: FrozenLMM, sample: Sample, data_root: Path) -> LMMInput:
    answer = lmm.processor.answer(sample)
    image = open_image(data_root / sample.image_path, (sample.width, sample.height))
    return LMMInput(
        image=lmm.prepare(image),
        prompt=lmm.processor.prompt(sample.prompt, image.size),
        answer_ids=answer.ids,
        object_tokens=answer.tokens_of(sample.slots),
    )


def test_cached_priors_equal_live_ones(small_cache: Path, data_root: Path) -> None:
    priors, lmm = Priors.open(small_cache), FrozenLMM(resolve_lmm("tiny"))
    sam = load_sam("tiny")
    for index in range(0, len(priors), 5):
        sample, cached = priors.samples[index], priors.read(index)
        assert cached is not None
        live = lmm.run([live_input(lmm, sample, data_root)])
        maps = live.attention.flatten(1, 2).numpy().reshape(cached.attention.shape)
        restored = cached.attention.astype(np.float64) * cached.attention_mass[..., None, None] / 144
        # the batch of the plan and float16 both round: 1e-5 of padding beside the float16 tolerance
        assert np.abs(restored - maps).max() <= FLOAT16 * maps.max() + 1e-5
        hidden = live.hidden.numpy()
        assert np.abs(cached.hidden - hidden).max() <= FLOAT16 * np.abs(hidden).max() + 1e-4
        answer = live.answer_hidden.numpy()
        assert np.abs(cached.answer_hidden - answer).max() <= FLOAT16 * np.abs(answer).max() + 1e-4
        image = open_image(data_root / sample.image_path, (sample.width, sample.height))
        embedding = encode_images(sam, preprocess_sam(image, 128)[0][None])[0].numpy()
        assert np.abs(priors.embedding(index) - embedding).max() <= FLOAT16 * np.abs(embedding).max() + 1e-4


def test_every_object_has_its_own_words(small_cache: Path) -> None:
    priors = Priors.open(small_cache)
    tokeniser = LMMProcessor(resolve_lmm("tiny")).tokenizer
    for index in range(0, len(priors), 7):
        sample, item = priors.samples[index], priors.read(index)
        assert item is not None and len(item.attention) == sample.slots
        texts = [described.phrase for described in sample.objects]
        if sample.reply is not None:  # of a question it is the object, of a conversation every word has its own
            texts = [sample.reply.text] if sample.task == "reasoning" else sample.reply.text.split()
        for k, text in enumerate(texts):
            ids = item.answer_ids[item.answer_object == k]
            assert tokeniser.decode(ids).split() == text.split()
            assert (item.hidden_object == k).sum() == len(ids)


def test_a_second_run_does_nothing_and_other_settings_are_refused(
    small_cache: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(small_cache)
    cli("extract", "--data-root", data_root, "--cache", small_cache, "--local")
    assert tree(small_cache) == before
    cli("extract", "--data-root", data_root, "--cache", small_cache, "--local", "--merge", "max", expect=2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "merge" in message and "max" in message and "mean" in message and "--overwrite" in message
    assert tree(small_cache) == before


def command(data_root: Path, cache: Path, *more: str) -> list[str]:
    return [
        sys.executable, "run_pipeline.py", "extract", "--data-root", str(data_root), "--cache", str(cache), *more
    ]  # fmt: skip


@pytest.fixture(scope="module")
def several_units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that need four units of images and of priors, so that a kill falls between commits."""
    root = tmp_path_factory.mktemp("units") / "scenes"
    write_scenes(root, ScenesConfig(train=60, val=2, test_a=2, test_b=2, narratives=2, shifted=2))
    return root


def test_killed_extraction_resumes_to_the_same_bytes_with_ray(several_units: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(several_units, whole, "--local"), cwd=REPO, check=True, capture_output=True)
    process = subprocess.Popen(
        command(several_units, killed, "--local"), cwd=REPO, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    commits = killed / "commits"
    deadline = time.monotonic() + 120
    while not (commits.is_dir() and any(commits.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = Store.open(killed).missing_units()
    assert 0 < len(left) < len(Store.open(killed).planned_units), "the kill was not in the middle"
    # finished by two Ray actors, where a single process did the other one
    subprocess.run(command(several_units, killed, "--workers", "2"), cwd=REPO, check=True, capture_output=True)
    ignored = "cache.lock"
    wanted = {k: v for k, v in tree(whole).items() if ignored not in k}
    found = {k: v for k, v in tree(killed).items() if ignored not in k}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def break_some(root: Path) -> dict[str, str]:
    """Damage four training images in four ways: image path -> what the failure has to say."""
    images = sorted((root / "train2014").glob("*.jpg"))[:4]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:600])
    Image.new("RGB", (20, 30)).save(images[2])
    images[3].write_text("no image at all")
    reasons = ["is missing", "can not be decoded", "20x30 pixels, its annotations are for", "can not be decoded"]
    return {f"train2014/{path.name}": reason for path, reason in zip(images, reasons, strict=True)}


def test_bad_images_are_listed_and_the_run_goes_on(tmp_path: Path) -> None:
    root, cache = tmp_path / "scenes", tmp_path / "cache"
    write_scenes(root, ScenesConfig(train=8, val=2, test_a=2, test_b=2, narratives=2, shifted=2))
    broken = break_some(root)
    cli("extract", "--dataset", "scenes-refcoco", "--data-root", root, "--cache", cache, "--local")
    priors = Priors.open(cache)
    failed = {priors.samples[i].image_path: reason for i, reason in priors.failures.items()}
    assert failed.keys() == broken.keys()
    for path, reason in broken.items():
        assert reason in failed[path]
    lines = [json.loads(line) for line in (cache / "failures.jsonl").read_text().splitlines()]
    assert {line["sample"] for line in lines} == priors.failures.keys()
    assert all(priors.read(i) is None for i in priors.failures)
    assert all(priors.read(i) is not None for i in range(len(priors)) if i not in priors.failures)
    result = json.loads((tmp_path / "cache.extract.json").read_text())
    assert result["failed_samples"] == 4
    assert result["bytes_per_object"] > 0 and result["seconds"]["total"] > 0
    before = tree(cache)
    cli(
        *["extract", "--dataset", "scenes-refcoco", "--local"],
        "--cache",
        cache,
        "--data-root",
        root.rename(tmp_path / "x"),
    )
    assert tree(cache) == before  # the reasons do not say where the data were


def test_a_foreign_folder_and_a_missing_root_are_refused(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("mine")
    for more in ((), ("--overwrite",), ("--images", tmp_path / "images")):
        cli("extract", "--data-root", data_root, "--cache", foreign, "--local", *more, expect=2)
    assert list(tmp_path.rglob("*")) == [foreign, foreign / "chapter.tex"]
    assert (foreign / "chapter.tex").read_text() == "mine"
    cli("extract", "--data-root", tmp_path / "none", "--cache", tmp_path / "cache", "--local", expect=2)
    cli("extract", "--dataset", "refcoco", "--cache", tmp_path / "cache", "--local", expect=2)
    errors = capsys.readouterr().err
    assert "thesis" in errors and "not a folder" in errors and "needs --data-root" in errors
    assert "Traceback" not in errors


def test_an_image_cache_of_others_is_never_deleted(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = root_of(make(tmp_path / "shared", kind="images"))
    before = tree(shared)
    few = [*FEW, "--data-root", data_root, "--cache", tmp_path / "cache"]
    cli(*few, "--images", shared, "--overwrite", expect=2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.endswith("Choose another --images") and str(shared) in message
    assert tree(shared) == before and not (tmp_path / "cache").exists()
    own = root_of(make(tmp_path / "cache" / "images", kind="images"))
    cli(*few, "--images", own, "--overwrite")  # the cache's own: goes with it
    assert Store.open(own).complete


def test_images_and_priors_must_fit_together(
    tmp_path: Path, data_root: Path, small_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    stores = Store.open(small_cache / "images"), Store.open(small_cache)
    sizes = [store.meta.units * store.meta.unit_bytes for store in stores]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, sum(sizes) - 1))
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "cache", "--local", expect=2)
    assert f"{sum(sizes):,} bytes are needed and {sum(sizes) - 1:,} are free" in capsys.readouterr().err
    # nothing but the answers, which are kept: they may have taken hours
    assert set(tree(tmp_path)) <= {"cache.answers.parquet", "cache/cache.lock"}


def test_units_in_flight_give_the_same_bytes(
    tmp_path: Path, data_root: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker with a GPU is run: one unit is read, one computed, one written."""

    def together(*args: Any, **options: Any) -> Any:
        return run_units(*args, **options | {"in_flight": 3})

    monkeypatch.setattr("pipeline.runtime.run_units", together)
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "cache", "--local")
    assert tree(tmp_path / "cache") == tree(small_cache)


def test_values_that_are_not_finite_fail_their_sample_only(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = AttentionCapture.run

    def overflowing(self: AttentionCapture, *inputs: Any) -> Any:
        captured = run(self, *inputs)
        captured.hidden[0, 2, 5] = torch.inf  # of the first sample's first token
        captured.answer_hidden[-1, 0] = torch.nan  # of the last sample's last token
        return captured

    def unknown(sam: Any, pixels: torch.Tensor) -> torch.Tensor:
        embeddings = encode_images(sam, pixels)
        embeddings[1, 3, 2, 2] = 1e6  # overflows in float16
        return embeddings

    monkeypatch.setattr(AttentionCapture, "run", overflowing)
    monkeypatch.setattr("stages.extract.image_units.encode_images", unknown)
    cache = tmp_path / "cache"
    cli(*FEW, "--data-root", data_root, "--cache", cache)
    priors = Priors.open(cache)
    order = sorted(range(len(priors)), key=lambda i: (priors.rows.number("batch", i), i))
    own = {entry["sample"]: entry["reason"] for entry in priors.store.failures()}
    assert own == {
        order[0]: "inf or nan in the LMM's hidden, hidden_scale with float32: give another --dtype",
        order[-1]: "inf or nan in the LMM's answer_hidden with float32: give another --dtype",
    }
    for sample in own:
        row = priors.rows[sample]
        assert not priors.store.read("attention", row.slot, row.slot + row.objects).any()
        assert not priors.store.read("hidden", row.token_slot, row.token_slot + sum(row.token_counts)).any()
    assert [entry["image"] for entry in priors.images.failures()] == [1]
    assert not priors.images.read("embedding", 1, 2).any()
    assert "inf or nan in SAM's embedding" in priors.failures[1]
    fine = [i for i in range(len(priors)) if i not in priors.failures]
    assert fine and all(priors.read(i).attention.any() and priors.embedding(i).any() for i in fine)
    assert json.loads((tmp_path / "cache.extract.json").read_text())["failed_samples"] == len(priors.failures) == 3


def test_the_record_counts_over_runs_and_is_kept_where_nothing_is_left(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, file = [*FEW, "--data-root", data_root, "--cache", tmp_path / "cache"], tmp_path / "cache.extract.json"
    run = ExtractionWorker.run

    def stopped(self: ExtractionWorker, unit: Any) -> Any:
        if unit.kind == "priors":
            raise KeyboardInterrupt
        return run(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(ExtractionWorker, "run", stopped)
        cli(*few, expect=2)
    first = json.loads(file.read_text())
    assert first["extracted"].keys() == {"images", "bytes"} and not first["complete"]
    cli(*few)
    second = json.loads(file.read_text())
    assert second["complete"] and second["extracted"]["objects"] == second["objects"] > 0
    assert second["extracted"]["images"] == first["extracted"]["images"]
    assert second["seconds"]["total"] > first["seconds"]["total"]
    assert second["seconds"]["workers_sam"] == first["seconds"]["workers_sam"]  # of the first run
    capsys.readouterr()
    kept = file.read_bytes()
    cli(*few)
    assert file.read_bytes() == kept
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "nothing was left to do" in last and "bytes/object" in last and f"{second['seconds']['total']:.1f} s" in last
    shutil.rmtree(tmp_path / "cache")
    cli(*few)
    again = json.loads(file.read_text())
    assert again["extracted"] == second["extracted"]  # a cache made anew, not twice as much
