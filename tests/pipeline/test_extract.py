"""What `extract` shows while it runs, with reports that no worker made."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cache.places import place_of
from pipeline.extract import shown
from pipeline.extract_record import Record
from stages.extract.work import WorkUnit

UNITS = [WorkUnit(kind="images", number=0), WorkUnit(kind="priors", number=0), WorkUnit(kind="priors", number=1)]
PLAN = SimpleNamespace(
    images_of_units=np.array([4]),
    objects_of_units=np.array([10, 5]),
    failures=[{"sample": 3, "reason": "no pixels"}],
)


def reports() -> Iterator[dict[str, Any]]:
    """Images for 0.6 s, then 15 objects of 20 MB in 0.2 s, of which one sample fails."""
    time.sleep(0.6)
    yield {"kind": "images", "unit": 0, "bytes": 3_000_000, "failures": []}
    for unit in (0, 1):
        time.sleep(0.1)
        failures = [{"sample": 2, "reason": "nan"}] if unit else []
        yield {"kind": "priors", "unit": unit, "bytes": 10_000_000, "failures": failures}


def test_bars_show_rates_and_failures_of_their_own_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert [report["unit"] for report in shown(reports(), UNITS, PLAN)] == [0, 0, 1]
    lines = re.split("[\r\n]+", capsys.readouterr().err)
    images, objects = ([line for line in lines if line.startswith(name)][-1] for name in ("images", "objects"))
    assert "4/4" in images and "image/s, 5 MB/s, 0 failed" in images
    found = re.search(r"15/15 .* ([\d.]+)object/s, (\d+) MB/s, (\d+) failed", objects)
    assert found, objects
    rate, megabytes, failed = map(float, found.groups())
    assert failed == 2  # one at planning, one in the LMM
    assert 30 < rate <= 75 and 40 < megabytes <= 100  # not 15 / 0.8 s: the time of the images is not theirs


def test_the_record_adds_up_restarts_and_retries_of_all_runs(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for _ in range(2):  # the second run takes up what the first one, killed, left
        record = Record(place_of(tmp_path / "cache"), place_of(tmp_path / "images"), "a plan", values)
        record.begin(planning=0.1)
        record.faults.update(restarts=1, retries=3)
        record.add({"kind": "images", "unit": 0, "images": 4, "bytes": 10, "failures": [], "seconds": {"read": 1.0}})
        values = json.loads((tmp_path / "cache.extract.json").read_text())
    assert (values["restarts"], values["retries"], values["extracted"]["images"]) == (2, 6, 8)
