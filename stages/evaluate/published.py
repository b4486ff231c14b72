"""Results that others published, to be shown beside ours, as theirs (`published.toml` holds them and their sources)."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A line of a paper's table.

    protocol, dataset, split, group: as `Measure` has them.  values: metric -> value in [0, 1] (CIDEr: may be larger).
    source: address of the paper.  note: what a reader must know to compare, or "".
    """

    protocol: str
    dataset: str
    split: str
    group: str
    method: str
    values: Mapping[str, float]
    source: str
    note: str


@cache
def published() -> tuple[Published, ...]:
    """All that is known, in the order of the file."""
    text = Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
    return tuple(line for entry in tomllib.loads(text)["published"] for line in _lines(entry))


def beside(splits: Collection[tuple[str, str, str]]) -> list[Published]:
    """What was published for these (protocol, dataset, split), which must agree to the letter: scenes never match."""
    return [each for each in published() if (each.protocol, each.dataset, each.split) in splits]


def _lines(entry: Mapping[str, Any]) -> list[Published]:
    metrics = entry["metrics"]
    return [
        Published(
            protocol=entry["protocol"],
            dataset=entry["dataset"],
            split=split,
            group=entry.get("group", "all"),
            method=entry["method"],
            values={name: value / 100 for name, value in zip(metrics, values, strict=True)},
            source=entry["source"],
            note=entry.get("note", ""),
        )
        for split, values in entry["splits"].items()
    ]
