"""What an extraction was told comes back from JSON, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.extract import Extract
from pipeline.extract_settings import from_settings, settings_of


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lmm").mkdir()
    (tmp_path / "tiny").mkdir()  # a folder of that name is not what --lmm tiny means
    monkeypatch.chdir(tmp_path)
    args = Extract(lmm="lmm", data_root=Path("data"), splits=("train", "val"), limit=3, views=2, trust_remote_code=True)
    args.decontaminate = True
    stored = json.loads(json.dumps(settings_of(args)))
    assert stored == {
        "lmm": str(tmp_path / "lmm"), "data_root": str(tmp_path / "data"), "splits": ["train", "val"], "limit": 3,
        "views": 2, "trust_remote_code": True, "decontaminate": True,
    }  # fmt: skip
    again = from_settings(stored)
    assert (again.lmm, again.data_root, again.splits) == (stored["lmm"], tmp_path / "data", ("train", "val"))
    assert settings_of(again) == stored
    # how it is run and where it goes are not part of it
    assert settings_of(Extract(cache="elsewhere", local=True, merge="max", batch_size=2, device="cpu")) == {}
