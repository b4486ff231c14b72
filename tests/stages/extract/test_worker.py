"""The worker: models loaded once and alone, too little memory, images that changed since they were planned."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.places import Folder
from cache.priors import Priors
from cache.store import Store
from manifests.errors import ModelError
from pipeline.runtime import run_units
from stages.extract import prior_units
from stages.extract.capture import AttentionCapture
from stages.extract.image_units import ImageUnits
from stages.extract.lmm import FrozenLMM
from stages.extract.prior_units import PriorUnits
from stages.extract.processor import LMMProcessor
from stages.extract.sam import encode_images
from tests.helpers import FEW, cli, tree


def test_nothing_is_read_while_a_model_is_loaded(
    tmp_path: Path, data_root: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sets torch's default dtype while it loads, for all threads: pixels read then would be others."""
    made = prior_units.load_lmm
    pixels = LMMProcessor.pixels

    def slow(*args: Any) -> FrozenLMM:
        lmm = made(*args)
        torch.set_default_dtype(torch.bfloat16)
        time.sleep(1)
        torch.set_default_dtype(torch.float32)
        return lmm

    def watched(self: LMMProcessor, images: Any) -> Any:
        assert torch.get_default_dtype() == torch.float32
        return pixels(self, images)

    def together(*args: Any, **options: Any) -> Any:
        return run_units(*args, **options | {"in_flight": 3})

    monkeypatch.setattr(prior_units, "load_lmm", slow)
    monkeypatch.setattr(LMMProcessor, "pixels", watched)
    monkeypatch.setattr("pipeline.runtime.run_units", together)
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "cache", "--local")
    assert tree(tmp_path / "cache") == tree(small_cache)


def test_a_model_that_can_not_be_loaded_is_tried_once(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(*_: Any) -> None:
        tried.append(1)
        raise ModelError("no such weights")

    def together(*args: Any, **options: Any) -> Any:
        return run_units(*args, **options | {"in_flight": 3})

    monkeypatch.setattr(prior_units, "load_lmm", broken)
    monkeypatch.setattr("pipeline.runtime.run_units", together)
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "cache", "--local", expect=2)
    assert capsys.readouterr().err.strip().endswith("error: no such weights") and len(tried) == 1


def test_images_that_do_not_fit_together_are_encoded_in_halves(
    tmp_path: Path, data_root: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def three_at_most(sam: Any, batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return encode_images(sam, batch)

    monkeypatch.setattr("stages.extract.image_units.encode_images", three_at_most)
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "cache", "--local")
    assert max(sizes) == 8 and 2 in sizes
    halves, whole = Priors.open(tmp_path / "cache"), Priors.open(small_cache)
    for index in range(len(whole)):
        np.testing.assert_allclose(halves.embedding(index), whole.embedding(index), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("kind", "cure"), [("images", "a smaller --sam"), ("priors", "--batch-size 2")])
def test_too_little_memory_names_the_unit_and_the_cure(
    tmp_path: Path, data_root: Path, kind: str, cure: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(
        *((AttentionCapture, "run") if kind == "priors" else ("stages.extract.image_units.encode_images",)), too_large
    )
    cli(*FEW, "--data-root", data_root, "--cache", tmp_path / "cache", expect=2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"unit 0 of {kind} does not fit" in last and "Tried to allocate 9 GiB" in last and f"give {cure}" in last


@pytest.mark.parametrize("change", ["other pixels", "gone"])
@pytest.mark.parametrize("kind", ["images", "priors"])
def test_an_image_that_is_not_the_planned_one_stops_the_run(
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    kind: str,
) -> None:
    """Neither embedded under the old one's name, nor recorded as a failure of its sample for ever."""
    root = shutil.copytree(data_root, tmp_path / "scenes")
    units = {"images": ImageUnits, "priors": PriorUnits}[kind]
    read = units.read

    def later(self: Any, work: Any) -> None:
        for path in root.rglob("*.jpg"):
            if change == "gone":
                path.unlink()
            else:
                Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        read(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(units, "read", later)
        cli(*FEW, "--data-root", root, "--cache", tmp_path / "cache", expect=2)
    said = "is not in" if change == "gone" else "is not the image that was planned"
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    shutil.copytree(data_root, root, dirs_exist_ok=True)
    cli(*FEW, "--data-root", root, "--cache", tmp_path / "cache")
    cli(*FEW, "--data-root", data_root, "--cache", tmp_path / "undisturbed")
    assert Store.open(tmp_path / "cache").failures() == []
    for name in ("images", "."):
        assert tree(tmp_path / "cache" / name / "commits") == tree(tmp_path / "undisturbed" / name / "commits")


def test_complete_embeddings_are_used_again_and_need_not_be_writable(
    small_cache: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(small_cache / "images")
    monkeypatch.setattr(ImageUnits, "model", property(lambda _: pytest.fail("SAM ran again")))
    monkeypatch.setattr(Folder, "sole_writer", _only_for(tmp_path, Folder.sole_writer))
    cli("extract", "--data-root", data_root, "--cache", tmp_path / "other", "--local", "--merge", "max", "--images",
        small_cache / "images")  # fmt: skip
    assert tree(small_cache / "images") == before
    assert len(Priors.open(tmp_path / "other").embedding(0)) == len(Priors.open(small_cache).embedding(0))


def _only_for(root: Path, sole_writer: Any) -> Any:
    def asked(place: Folder) -> Any:
        assert place.root.is_relative_to(root), f"{place} is locked"
        return sole_writer(place)

    return asked
