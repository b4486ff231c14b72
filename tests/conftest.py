"""A small end-to-end run that several tests look at: generated scenes, a cache of the embedded models, a head."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from manifests.scenes.write import ScenesConfig, write_scenes

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the tests may reach for the network
torch.set_num_threads(2)
EVERY_SPLIT = ScenesConfig(train=10, val=4, test_a=4, test_b=2, narratives=4, shifted=2)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in the official formats, a few of every split."""
    root = tmp_path_factory.mktemp("small") / "scenes"
    write_scenes(root, EVERY_SPLIT)
    return root


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The cache of those scenes, extracted in this process."""
    from tests.helpers import cli

    cache = tmp_path_factory.mktemp("run") / "cache"
    cli("extract", "--data-root", data_root, "--cache", cache, "--local")
    return cache


@pytest.fixture(scope="session")
def small_head(small_cache: Path) -> Path:
    """A head trained for two epochs on that cache."""
    from tests.helpers import cli

    head = small_cache.parent / "head"
    cli("train-head", "--cache", small_cache, "--out", head, "--epochs", "2")
    return head
