"""Export, import, and the two stages that read the file itself: the same weights, the same numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cache.priors import Priors
from pipeline.transfer import Export, Import, run_export, run_import
from stages.train_head.data import read_batch
from stages.train_head.heads.checkpoint import load_head
from tests.helpers import cli, tree


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_there_and_back(small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "priors.h5"
    run_export(Export(cache=str(small_cache), to=path, with_images=True))
    record = last_line(capsys)
    assert record["bytes"] == path.stat().st_size and record["objects"] > 20 and record["seconds"] > 0
    run_import(Import(file=path, cache=str(tmp_path / "back")))
    assert last_line(capsys)["objects"] == record["objects"]
    assert tree(tmp_path / "back") == tree(small_cache)
    run_export(Export(cache=str(small_cache / "images"), to=tmp_path / "images.h5"))
    assert last_line(capsys)["images"] > 10


def test_training_and_evaluation_from_the_file(small_cache: Path, small_head: Path, tmp_path: Path) -> None:
    whole, alone = tmp_path / "whole.h5", tmp_path / "alone.h5"
    run_export(Export(cache=str(small_cache), to=whole, with_images=True))
    run_export(Export(cache=str(small_cache), to=alone))
    moved = shutil.copytree(small_cache / "images", tmp_path / "moved")
    folder = Priors.open(small_cache)
    for priors in (Priors.open(whole), Priors.open(alone, images_dir=moved)):  # what the refiner learns from as well
        a, b = (read_batch(each, range(len(folder)), load_head(small_head)) for each in (folder, priors))
        assert a is not None and b is not None and a.indices == b.indices
        for field in fields(a.inputs):
            one, other = getattr(a.inputs, field.name), getattr(b.inputs, field.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name
    results = []
    for number, cache in enumerate([[small_cache], [alone, "--images", moved]]):
        head, out = tmp_path / f"head{number}", tmp_path / f"out{number}"
        cli("train-head", "--cache", *cache, "--out", head, "--epochs", "1", "--no-refiner")
        cli("evaluate", "--cache", *cache, "--head", head, "--out", out, "--splits", "testB")
        metrics = json.loads((out / "metrics.json").read_text())
        results.append(((head / "model.safetensors").read_bytes(), metrics["results"]))
    assert results[0] == results[1] and results[0][1]
    cli("evaluate", "--cache", alone, "--head", tmp_path / "head0", "--out", tmp_path / "out")  # needs no images
