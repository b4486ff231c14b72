"""From sums to numbers: every map's scores, over all objects and by group, beside those of the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stages.analyze.labels import Label
from stages.analyze.measure import CONTROL, OBJECT, Sums
from stages.analyze.objects import KINDS, POSITIONS, SIZES
from stages.train_head.overlaps import THRESHOLDS

SCORES: Final = ("ciou", "miou", "pointing")
ALL: Final = "all"
BREAKDOWNS: Final = {"kind": KINDS, "size": SIZES, "position": POSITIONS}
"""What objects are grouped by: the axes of the bins, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Scores of C maps. Arrays are float64 [2, C]: against the object's mask, against the control's; in [0, 1]."""

    labels: list[Label]
    threshold: np.ndarray
    """The one with the best cIoU over all objects, of either mask; also what the groups and mIoU are scored with."""
    groups: dict[str, dict[str, np.ndarray]]
    """Group ("all", "thing", …; only those that have objects) -> score of SCORES -> values."""
    objects: dict[str, int]
    """Objects of every group, 0 included."""
    mass: np.ndarray
    """[C]: attention on the image, mean over the objects."""
    entropy: np.ndarray
    """[C]"""
    controlled: bool
    """False: there was no other image, the second row is no control."""

    def order(self) -> list[int]:
        """The maps, best cIoU first; of two that are equally good the one with the lower number."""
        return np.argsort(-self.groups[ALL]["ciou"][OBJECT], kind="stable").tolist()

    def values(self, group: str, score: str, number: int) -> dict[str, float]:
        """A map's score and its control, as the records have them: {"ciou": …, "control_ciou": …}."""
        found = self.groups[group][score][:, number]
        both = {score: _rounded(found[OBJECT]), f"control_{score}": _rounded(found[CONTROL])}
        return both if self.controlled else {score: both[score]}


def summarise(sums: Sums, labels: Sequence[Label], controlled: bool) -> Analysis:
    """The scores of sums over one object or more."""
    whole = _ciou(sums, (slice(None),) * 3)  # [2, C, T]
    best = whole.argmax(-1)
    groups, objects = {}, {}
    for name, bins in _selections().items():
        objects[name] = count = int(sums.objects[bins].sum())
        if count:
            groups[name] = {
                "ciou": _at(_ciou(sums, bins), best),
                "miou": _at(_total(sums.iou, bins), best) / count,
                "pointing": _total(sums.hits, bins) / count,
            }
    every, total = (slice(None),) * 3, int(sums.objects.sum())
    return Analysis(
        labels=list(labels),
        threshold=np.array(THRESHOLDS)[best],
        groups=groups,
        objects=objects,
        mass=_total(sums.mass, every) / total,
        entropy=_total(sums.entropy, every) / total,
        controlled=controlled,
    )


def map_records(analysis: Analysis) -> list[dict[str, Any]]:
    """Of every map, in the order of the cache, all that was found; JSON."""
    records = []
    for number, label in enumerate(analysis.labels):
        record: dict[str, Any] = label.record() | {"threshold": float(analysis.threshold[OBJECT, number])}
        record |= _scores(analysis, ALL, number)
        record |= {"attention_mass": _rounded(analysis.mass[number]), "entropy": _rounded(analysis.entropy[number])}
        record["groups"] = {name: _scores(analysis, name, number) for name in analysis.groups if name != ALL}
        records.append(record)
    return records


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A map's record as one row of a table: {"ciou": …, "thing_ciou": …}."""
    row = {name: value for name, value in record.items() if name != "groups"}
    for group, scores in record["groups"].items():
        row |= {f"{group.replace(' ', '_')}_{name}": value for name, value in scores.items()}
    return row


def layer_records(analysis: Analysis) -> list[dict[str, Any]]:
    """Of every layer of every view that has maps in the cache: how many, the best head, best and mean scores."""
    members: dict[tuple[int, int], list[int]] = {}
    for number, label in enumerate(analysis.labels):
        members.setdefault((label.view, label.layer), []).append(number)
    records = []
    for (view, layer), maps in sorted(members.items()):
        scores = {score: analysis.groups[ALL][score][OBJECT, maps] for score in SCORES}
        best = maps[int(scores["ciou"].argmax())]
        record: dict[str, Any] = {"view": view, "layer": layer, "maps": len(maps), "best_map": best}
        record["best_head"] = analysis.labels[best].head
        for score, values in scores.items():
            record |= {f"best_{score}": _rounded(values.max()), f"mean_{score}": _rounded(values.mean())}
        records.append(record)
    return records


def group_records(analysis: Analysis) -> dict[str, dict[str, int]]:
    """{"kind": {"thing": objects, "stuff": …}, "size": …, "position": …}: every object once in each."""
    return {kind: {name: analysis.objects[name] for name in names} for kind, names in BREAKDOWNS.items()}


def _selections() -> dict[str, tuple[Any, ...]]:
    """Group -> which bins it is."""
    found: dict[str, tuple[Any, ...]] = {ALL: (slice(None),) * 3}
    for axis, names in enumerate(BREAKDOWNS.values()):
        for number, name in enumerate(names):
            found[name] = tuple(slice(number, number + 1) if k == axis else slice(None) for k in range(3))
    return found


def _total(values: np.ndarray, bins: tuple[Any, ...]) -> np.ndarray:
    return values[bins].sum((0, 1, 2))


def _ciou(sums: Sums, bins: tuple[Any, ...]) -> np.ndarray:
    return _total(sums.both, bins) / _total(sums.either, bins).clip(1)


def _at(values: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """[2, C, T] and numbers of thresholds [2, C] -> [2, C]."""
    return np.take_along_axis(values, threshold[..., None], -1)[..., 0]


def _scores(analysis: Analysis, group: str, number: int) -> dict[str, float]:
    return {name: value for score in SCORES for name, value in analysis.values(group, score, number).items()}


def _rounded(value: Any) -> float:
    return round(float(value), 6)
