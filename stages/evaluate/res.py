"""Referring expression segmentation (RES): cIoU, mIoU and P@t, per dataset and split.

Two protocols, whose numbers are not comparable:
    res-flmm  the first sentence of every object, all of an image's sentences in one sequence, every object counted once
              (`extract --sentences first --context joined`, the default; F-LMM)
    res-lisa  every sentence of every object alone (`--sentences all --context alone`; LISA and most that follow it)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from stages.evaluate.bootstrap import DRAWS, Estimate, estimate
from stages.evaluate.measures import Measure
from stages.evaluate.results import Columns, ObjectResult, Which, breakdown, parts

PROTOCOL: Final = "res-flmm"
THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
_PROTOCOLS: Final = {("first", "joined"): PROTOCOL, ("all", "alone"): "res-lisa"}


def protocol_of(meta: Mapping[str, Any]) -> str:
    """The protocol under which a manifest's expressions are seen. meta: of the manifest.

    Other ways to see them have names of their own, such as "res-first-alone"; several ways, in a cache that was merged
    of some, are "res-mixed".
    """
    if "merged" in meta and not {"sentences", "context"} <= meta.keys():  # what differed was left out
        return "res-mixed"
    seen = (str(meta.get("sentences", "first")), str(meta.get("context", "joined")))
    return _PROTOCOLS.get(seen, f"res-{seen[0]}-{seen[1]}")


def summarise_res(
    results: Sequence[ObjectResult],
    which: Which = "refined",
    *,
    protocol: str = PROTOCOL,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Measure]:
    """ciou, miou and p@0.5 to p@0.9 of referring expressions: all of a split, by size of the object, by words.

    ciou: summed intersection over summed union, so that large objects weigh more.  miou: the mean IoU.  p@t: the share
    of objects with IoU >= t.  An object of a sample that was never extracted has IoU 0 and its area in the union.
    """
    measures: list[Measure] = []
    for part in parts(results, which, ("referring",)):
        columns = part.columns
        every = np.ones(len(columns.iou), bool)
        for group, members in [("all", every), *breakdown(columns)]:
            if not members.any():
                continue
            chosen = columns.where(members)
            measure = partial(
                Measure,
                protocol=protocol,
                dataset=part.dataset,
                split=part.split,
                method=which,
                group=group,
                images=len(np.unique(chosen.images)),
                items=len(chosen.iou),
                failed=int(chosen.failed.sum()),
            )
            found = _metrics(chosen, seed, draws)
            measures += [measure(metric=metric, value=value) for metric, value in found.items()]
    return measures


def _metrics(columns: Columns, seed: int, draws: int) -> dict[str, Estimate | None]:
    ratio = partial(estimate, columns.images, seed=seed, draws=draws)
    one = np.ones_like(columns.iou)
    found = {"ciou": ratio(columns.intersection, columns.union), "miou": ratio(columns.iou, one)}
    return found | {f"p@{t}": ratio((columns.iou >= t).astype(np.float64), one) for t in THRESHOLDS}
