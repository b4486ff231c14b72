"""The extract stage on generated scenes: cached equals live, kills, failures, identity, Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.priors import Priors
from cache.store import Store
from manifests.scenes.write import ScenesConfig, write_scenes
from manifests.schema import Sample
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM, LMMInput, Tokeniser
from stages.extract.presets import resolve_lmm
from stages.extract.sam import encode_images, load_sam, preprocess_sam
from tests.helpers import cli, tree

REPO = Path(__file__).parents[3]
FLOAT16 = 5e-4  # relative rounding of a value of a scaled map or state, see cache.scaling


def live_input(lmm: FrozenLMM, sample: Sample, data_root: Path) -> LMMInput:
    tokeniser = Tokeniser(lmm.preset)
    answer = tokeniser.answer(sample)
    image = open_image(data_root / sample.image_path, (sample.width, sample.height))
    return LMMInput(
        pixels=lmm.prepare(image),
        prompt_ids=tokeniser.prompt(sample.prompt),
        answer_ids=answer.ids,
        object_tokens=answer.tokens_of(len(sample.objects)),
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
    tokeniser = Tokeniser(resolve_lmm("tiny")).tokenizer
    for index in range(0, len(priors), 7):
        sample, item = priors.samples[index], priors.read(index)
        assert item is not None and len(item.attention) == len(sample.objects)
        for k, described in enumerate(sample.objects):
            ids = item.answer_ids[item.answer_object == k]
            assert tokeniser.decode(ids).split() == described.phrase.split()
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


def test_a_foreign_folder_and_a_missing_root_are_refused(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("mine")
    cli("extract", "--data-root", data_root, "--cache", foreign, "--local", "--overwrite", expect=2)
    assert (foreign / "chapter.tex").read_text() == "mine"
    cli("extract", "--data-root", tmp_path / "none", "--cache", tmp_path / "cache", "--local", expect=2)
    cli("extract", "--dataset", "refcoco", "--cache", tmp_path / "cache", "--local", expect=2)
    errors = capsys.readouterr().err
    assert "thesis" in errors and "not a folder" in errors and "needs --data-root" in errors
    assert "Traceback" not in errors
