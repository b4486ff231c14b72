"""A number of an evaluation, of the same shape for every protocol: a line of metrics.json, a cell of a table."""

from __future__ import annotations

from dataclasses import dataclass

from stages.evaluate.bootstrap import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One metric of one method on some objects of one dataset's split.

    Values lie in [0, 1]; CIDEr is as published and may be larger. Names are lower case, words joined by "_".
    """

    protocol: str
    """How it was measured: res-flmm, res-lisa, png, reasonseg, gcg, gcg-strict, keywords."""
    dataset: str
    split: str
    method: str
    """Whose answer: "refined" or "coarse" masks, "selector", "every noun phrase", …"""
    group: str = "all"
    """Of which objects or texts: all, thing, stuff, small, short, …"""
    metric: str
    """ciou, miou, p@0.5, average_recall, giou, meteor, word_f1, …"""
    value: Estimate | None
    """None: there was nothing to measure, or it could not be, then `absent` says why and what is to be done."""
    images: int
    items: int
    """Objects, or texts."""
    failed: int = 0
    """Of the items those of samples that were never extracted; they count as misses."""
    absent: str = ""
