"""Real data beside the repository (skipped where it is missing) and one small set of generated scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.scenes.write import ScenesConfig, write_scenes

REAL = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is missing")
    return REAL


@pytest.fixture(scope="session")
def config() -> ScenesConfig:
    return ScenesConfig(train=8, val=3, test_a=3, test_b=3, narratives=5, shifted=6)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, config: ScenesConfig) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, config)
    return root
