"""What several runs of `pipeline.comparison` say together: means, spreads, paired differences, and the table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.train_head import choose_device

Found = dict[tuple[str, int], dict[str, Any]]
"""(condition, seed) -> what `run_one` gave."""
SHARES: Final = ("res_ciou", "res_miou", "png_all", "png_thing", "png_stuff")
SHARES_SHIFTED: Final = tuple(f"shifted_{name}" for name in SHARES)
"""Of scenes with looks that no model has seen; generated scenes only."""
COSTS: Final = ("parameters", "s_per_epoch", "bytes_per_object")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, spread (max - min) and the values of the seeds."""
    return {"mean": sum(values) / len(values), "spread": max(values) - min(values), "seeds": list(values)}


def summaries(found: Found, name: str, seeds: int, baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """Each number of a condition over its seeds; {} unless all of these are done.

    baseline: a condition; "change_res_ciou" and so on are then the differences to it, seed by seed.
    """
    runs = [found[name, seed] for seed in range(seeds) if (name, seed) in found]
    if len(runs) < seeds:
        return {}
    wanted = (*SHARES, *SHARES_SHIFTED, "val_ciou", *COSTS, "seconds_fit")
    table = {metric: summary([run[metric] for run in runs]) for metric in wanted if metric in runs[0]}
    if baseline and all((baseline, seed) in found for seed in range(seeds)):
        first = [found[baseline, seed] for seed in range(seeds)]
        for metric in ("res_ciou", "png_all", "val_ciou"):
            if metric in runs[0]:
                changes = [run[metric] - other[metric] for run, other in zip(runs, first, strict=True)]
                table[f"change_{metric}"] = summary(changes)
    return table


COLUMNS: Final = {
    "res_ciou": "RES cIoU",
    "change_res_ciou": "change",
    "res_miou": "mIoU",
    "png_all": "PNG recall",
    "change_png_all": "change",
    "png_thing": "thing",
    "png_stuff": "stuff",
    "val_ciou": "val cIoU",
    "parameters": "parameters",
    "s_per_epoch": "s/epoch",
    "bytes_per_object": "bytes/object",
}


def table(rows: dict[str, dict[str, dict[str, Any]]], titles: dict[str, str]) -> str:
    """`summaries` by name as a table: shares in percent, mean and half the range of the seeds; costs as means."""
    columns = {metric: title for metric, title in COLUMNS.items() if any(metric in row for row in rows.values())}
    width = max(map(len, [*titles.values(), ""])) + 2
    lines = [f"{'':<{width}}" + "".join(f"{title:>13}" for title in columns.values())]
    for name, row in rows.items():
        lines.append(
            f"{titles[name]:<{width}}" + "".join(f"{_cell(metric, row.get(metric)):>13}" for metric in columns)
        )
    return "\n".join(lines)


def _cell(metric: str, value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if metric in COSTS:
        return f"{value['mean']:,.2f}" if metric == "s_per_epoch" else f"{value['mean']:,.0f}"
    sign = "+" if metric.startswith("change") else ""
    return f"{100 * value['mean']:{sign}.1f} ±{50 * value['spread']:.1f}"


def about(device: str, processes: int) -> dict[str, Any]:
    """Hardware and date, for records."""
    import platform

    import torch

    device = choose_device(device)
    where = f"{platform.machine()}, {os.cpu_count()} CPU cores, torch {torch.__version__}"
    if device.startswith("cuda"):
        where = f"{torch.cuda.get_device_name(device)}, {where}"
    return {"hardware": where, "device": device, "processes": processes, "date": time.strftime("%Y-%m-%d")}


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial_file = file.with_suffix(".partial")
    partial_file.write_text(json.dumps(value, indent=1) + "\n")
    partial_file.replace(file)
