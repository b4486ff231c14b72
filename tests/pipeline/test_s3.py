"""Extract to S3, be killed there, go on, train and evaluate from there: a local server, everything else is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.places import lease, place_of
from tests import s3
from tests.helpers import cli, tree

REPO = Path(__file__).parents[2]
LOCKS = ("cache.lock", "units.lock")


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3.server() as url:
        yield url


def extract(data_root: Path, cache: str) -> list[str]:
    return ["extract", "--data-root", str(data_root), "--splits", "train", "testA", "--local", "--cache", cache]


def test_a_cache_on_s3_is_begun_killed_finished_and_used(
    bucket: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{bucket}/runs/tiny"
    place = place_of(url)
    process = subprocess.Popen([sys.executable, "run_pipeline.py", *extract(data_root, url)], cwd=REPO, env=os.environ)
    while process.poll() is None and not place.sizes("images/commits"):
        time.sleep(0.05)
    process.kill()
    assert process.wait() != 0, "it was done before it could be killed"
    monkeypatch.setattr(lease, "BEAT", 0.5)
    monkeypatch.setattr(lease, "STALE", 3.0)  # the dead driver is not waited for longer than that
    cli(*extract(data_root, url))
    assert json.loads(place.read_beside(".extract.json"))["complete"]
    cli(*extract(data_root, str(tmp_path / "cache")))
    local = tree(tmp_path / "cache")
    found = {name: place.read(name) for name in place.sizes("")}
    assert {name for name in local if Path(name).name not in LOCKS} == {n for n in found if Path(n).name not in LOCKS}
    same = [name for name in found if Path(name).name not in (*LOCKS, "cache.json") and found[name] == local[name]]
    assert len(same) == len([name for name in found if Path(name).name not in (*LOCKS, "cache.json")])
    capsys.readouterr()
    cli("cache", "verify", "--cache", url)
    assert capsys.readouterr().out.count("every byte as committed") == 2
    results = []
    for number, cache in enumerate((url, str(tmp_path / "cache"))):
        head, out = tmp_path / f"head{number}", tmp_path / f"out{number}"
        cli("train-head", "--cache", cache, "--out", head, "--epochs", "1", "--no-refiner")
        cli("evaluate", "--cache", cache, "--head", head, "--out", out, "--splits", "testA", "--data-root", data_root)
        results.append(
            ((head / "model.safetensors").read_bytes(), json.loads((out / "metrics.json").read_text())["results"])
        )
    assert results[0] == results[1]
