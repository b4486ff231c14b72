"""ReasonSeg: the LMM answers a question that needs reasoning, its answer is grounded as a whole.

    giou   mean over questions of the IoU, 1 where nothing is true and nothing is predicted (LISA)
    ciou   summed intersection over summed union (LISA)
    giou_flmm        as giou, but 0 where both are empty: what F-LMM's script adds up (its unions get 1e-12)
    ciou_normalised  ciou of counts that are shares of each image's pixels, so that large images weigh no more

All of them also for short and for long questions. Pixels marked "ignore" count nowhere. A question whose answer is
missing counts as a miss in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from stages.evaluate.bootstrap import DRAWS, Estimate, estimate
from stages.evaluate.measures import Measure
from stages.evaluate.results import Columns, ObjectResult, Which, parts

PROTOCOL: Final = "reasonseg"


def summarise_reasonseg(
    results: Sequence[ObjectResult], which: Which = "refined", *, seed: int = 0, draws: int = DRAWS
) -> list[Measure]:
    """The four metrics of reasoning questions per (dataset, split), for all of them and by the samples' groups."""
    measures: list[Measure] = []
    for part in parts(results, which, ("reasoning",)):
        groups = [name for name in sorted(set(part.columns.groups.tolist())) if name]
        for group in ("all", *groups):
            chosen = part.columns if group == "all" else part.columns.where(part.columns.groups == group)
            measures += [
                Measure(
                    protocol=PROTOCOL,
                    dataset=part.dataset,
                    split=part.split,
                    method=which,
                    group=group,
                    metric=metric,
                    value=value,
                    images=len(np.unique(chosen.images)),
                    items=len(chosen.iou),
                    failed=int(chosen.failed.sum()),
                )
                for metric, value in _metrics(chosen, seed, draws).items()
            ]
    return measures


def _metrics(columns: Columns, seed: int, draws: int) -> dict[str, Estimate | None]:
    ratio = partial(estimate, columns.images, seed=seed, draws=draws)
    one, pixels = np.ones_like(columns.iou), np.maximum(columns.pixels, 1)
    return {
        "giou": ratio(columns.iou, one),
        "ciou": ratio(columns.intersection, columns.union),
        "giou_flmm": ratio(np.where(columns.union > 0, columns.iou, 0.0), one),
        "ciou_normalised": ratio(columns.intersection / pixels, columns.union / pixels),
    }
