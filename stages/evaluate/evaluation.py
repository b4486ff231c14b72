"""All that one evaluation found, and metrics.json, the file that holds it.

{"schema": 3, "run": {…}, "results": [a `Measure` each, its value as value, low, high], "curves": {…},
 "text_models": {…}, "failures": {sample: reason}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from manifests.errors import PipelineError
from stages.evaluate.bootstrap import Estimate
from stages.evaluate.measures import Measure

SCHEMA: Final = 3
METRICS_FILE: Final = "metrics.json"
Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""What of ("png val") -> whose ("thing") -> points in [0, 1] x [0, 1], by x."""
_TEXTS: Final = ("protocol", "dataset", "split", "method", "group", "metric", "absent")
_LEVELS: Final = 50  # of lists and objects in each other; an identity has fewer than ten
_COUNTS: Final = ("images", "items", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """run: what was run, in the order to show it (lmm, head, cache, lam, …), values that JSON can hold; a nested
    mapping (the identity of cache and head) is shown folded; `lmm` and `head` also make the page's title, `lam` says
    which of the selector's thresholds is the run's.
    measures: all numbers, in the order of the tables.  curves: recall over the IoU threshold, to draw.
    text_models: what read texts (noun chunks, similarity) -> its identity.  failures: sample id -> reason.
    """

    run: Mapping[str, Any]
    measures: Sequence[Measure] = ()
    text_models: Mapping[str, Any] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "schema": SCHEMA,
        "run": dict(evaluation.run),
        "results": [asdict(measure) for measure in evaluation.measures],
        "curves": {name: dict(lines) for name, lines in evaluation.curves.items()},
        "text_models": dict(evaluation.text_models),
        "failures": dict(evaluation.failures),
    }


def is_evaluation(folder: Path) -> bool:
    """Did an evaluation fill this folder, in this version of the program or an earlier one?"""
    try:
        record = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict) or not {"schema", "run"} <= record.keys():
        return False
    return "results" in record or "protocols" in record  # up to schema 2: a table per protocol


def read_metrics(place: Path) -> Evaluation:
    """The evaluation in a metrics.json, or in a folder with one. PipelineError: there is none, or it is not ours."""
    path = place / METRICS_FILE if place.is_dir() else place
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(
            f"{path} can not be read ({error.strerror}): give the --out folder of an `evaluate`"
        ) from None
    except (ValueError, RecursionError):
        raise PipelineError(f"{path} is no JSON: give the --out folder of an `evaluate`") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise PipelineError(f"{path} is not of this program: give the --out folder of an `evaluate`")
    if record["schema"] != SCHEMA:
        raise PipelineError(
            f"{path} is of another version of this program (schema {str(record['schema'])[:20]!r}, this one reads "
            f"{SCHEMA}): evaluate again"
        )
    try:
        return _evaluation(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PipelineError(
            f"{path} is damaged or not of this program ({' '.join(str(error).split())[:200]}): evaluate again"
        ) from None


def _evaluation(record: dict[str, Any]) -> Evaluation:
    if _levels_exceed(record, _LEVELS):
        raise ValueError("it is nested too deeply")
    json.dumps(record, allow_nan=False)  # ValueError for what a file of ours never holds, and can not be written again
    for name in ("run", "curves", "text_models", "failures"):
        if not isinstance(record[name], dict):
            raise ValueError(f"{name!r} is no object")
    if not isinstance(record["results"], list):
        raise ValueError("'results' is no list")
    return Evaluation(
        run=record["run"],
        measures=[_measure(each) for each in record["results"]],
        text_models=record["text_models"],
        failures={name: str(reason) for name, reason in record["failures"].items()},
        curves={
            name: {line: [(_number(x), _number(y)) for x, y in points] for line, points in lines.items()}
            for name, lines in record["curves"].items()
        },
    )


def _measure(found: Any) -> Measure:
    if not isinstance(found, dict) or found.keys() != {each.name for each in fields(Measure)}:
        raise ValueError("a result has not the fields of a result")
    if not all(isinstance(found[name], str) for name in _TEXTS):
        raise ValueError(f"a result's {', '.join(_TEXTS)} must be texts")
    if not all(isinstance(found[name], int) and found[name] >= 0 for name in _COUNTS):
        raise ValueError(f"a result's {', '.join(_COUNTS)} must be counts")
    value = found["value"]
    if value is not None:
        low, high = (None if value[end] is None else _number(value[end]) for end in ("low", "high"))
        value = Estimate(value=_number(value["value"]), low=low, high=None if low is None else high)
    return Measure(**found | {"value": value})


def _levels_exceed(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inner for each in values]
    return bool(level)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)
