"""The numbers of metrics.json on a model card: its tables, and the entries of its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import EvalResult

MAIN: Final = {"png": ("all", "thing", "stuff", "singular", "plural"), "keywords": ("word", "phrase", "overlap")}
"""Groups of a protocol that the card shows; "all" of the others."""
CARD: Final = {
    "res-flmm": (("all", "ciou"), ("all", "miou")),
    "res-lisa": (("all", "ciou"), ("all", "miou")),
    "png": tuple((group, "average_recall") for group in MAIN["png"]),
    "reasonseg": (("all", "giou"), ("all", "ciou")),
    "gcg": (("all", "ap50"), ("all", "miou")),
    "keywords": (("word", "f1"),),
}
"""(group, metric) that go into the metadata, of the head's last masks and of the selector."""
Key = tuple[str, str, str]  # dataset, split, method


@dataclass(frozen=True, kw_only=True, slots=True)
class CardTable:
    """A protocol's numbers, as text, a line per (dataset, split, method)."""

    protocol: str
    head: list[str]
    lines: list[list[str]]


def result_tables(metrics: dict[str, Any]) -> list[CardTable]:
    """A table per protocol; the selector at the run's threshold only. KeyError, TypeError, …: not a metrics.json's."""
    return [
        _table(protocol, rows)
        for protocol, rows in _by_protocol(metrics).items()
        if any(row["group"] in _main(protocol) for row in rows)
    ]


def results(metrics: dict[str, Any]) -> list[EvalResult]:
    """The metadata's entries, values in [0, 1]."""
    found = []
    for protocol, rows in _by_protocol(metrics).items():
        for group, metric in CARD.get(protocol, ()):
            finals = [row for row in rows if row["method"] in _finals(rows)]
            found += [
                _result(row) for row in finals if (row["group"], row["metric"]) == (group, metric) and row["value"]
            ]
    return found


def _result(row: dict[str, Any]) -> EvalResult:
    metric, group, protocol = row["metric"], row["group"], row["protocol"]
    parts = [metric] if group == "all" and protocol != "png" else [metric, group]
    return EvalResult(
        task_type="token-classification" if protocol == "keywords" else "image-segmentation",
        dataset_type=row["dataset"],
        dataset_name=f"{row['dataset']} {row['split']}",
        dataset_split=row["split"],
        metric_type="_".join(parts),
        metric_name=f"{', '.join(parts).replace('_', ' ')} ({protocol}, {row['method']})",
        metric_value=float(row["value"]["value"]),
    )


def _by_protocol(metrics: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results without the selector's other thresholds, by protocol, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    lam = (metrics.get("run") or {}).get("lam")
    for row in metrics["results"] if metrics else ():
        at = row["method"].partition("λ=")[2]
        if not at or lam is None or float(at) == lam:
            found.setdefault(row["protocol"], []).append(row)
    return found


def _main(protocol: str) -> tuple[str, ...]:
    return MAIN.get(protocol, ("all",))


def _finals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of a protocol: refined masks (coarse ones where there are no others), the selector."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    selectors = [method for method in methods if method.startswith("selector")]
    return selectors or [method for method in methods if method != "coarse"] or methods


def _table(protocol: str, rows: Sequence[dict[str, Any]]) -> CardTable:
    shown = [row for row in rows if row["group"] in _main(protocol)]
    columns = list(dict.fromkeys((row["group"], row["metric"]) for row in shown))
    lines: dict[Key, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in shown:
        key = (row["dataset"], row["split"], row["method"])
        lines.setdefault(key, {})[row["group"], row["metric"]] = row
    return CardTable(
        protocol=protocol,
        head=["dataset", "method", *(_title(*column) for column in columns), "items", "failed"],
        lines=[
            [f"{dataset} {split}", method]
            + [percent(cells[column]["value"] if column in cells else None) for column in columns]
            + [str(next(iter(cells.values()))[count]) for count in ("items", "failed")]
            for (dataset, split, method), cells in lines.items()
        ],
    )


def _title(group: str, metric: str) -> str:
    name = metric.partition("[")[0].replace("_", " ") + "".join(metric.partition("[")[1:])
    return name if group == "all" else f"{name}, {group}"


def percent(value: dict[str, Any] | None) -> str:
    """ "62.9 [61.0, 64.8]" of a value in [0, 1] and its interval, "–" of none."""
    if value is None:
        return "–"
    shown = f"{100 * value['value']:.1f}"
    return shown if value["low"] is None else f"{shown} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
