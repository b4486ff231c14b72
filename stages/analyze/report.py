"""What an analysis leaves behind: analysis.json (for programs), maps.csv (a row per map), and the tables to read.

`read_ranking` takes the order of the maps from analysis.json: what `cache prune --ranking` keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from cache.derive import content_of
from cache.identity import differing, digest
from cache.priors import Priors
from manifests.errors import IdentityMismatch, PipelineError
from stages.analyze.labels import Label
from stages.analyze.measure import OBJECT
from stages.analyze.objects import SIZE_BORDERS
from stages.analyze.results import ALL, BREAKDOWNS, Analysis, flat, group_records, layer_records, map_records
from stages.train_head.overlaps import THRESHOLDS

SCHEMA: Final = 1
FILE: Final = "analysis.json"
SCORE: Final = "ciou"
CHOOSING: Final = ("train", "val")
"""Splits that maps may be chosen by."""
METHOD: Final = {
    "ciou": "cells in both / cells in either, each summed over the objects: the map above its threshold against the "
    "mask, on the map's grid inside the image, the mask as it is at the cells' centres",
    "threshold": f"of each map the one of {', '.join(map(str, THRESHOLDS))} times its mean that gives the best cIoU "
    "over all objects; groups and mIoU use the same",
    "miou": "mean over the objects of cells in both / cells in either",
    "pointing": "share of the objects that the map's maximum points at: any pixel of the mask lies in that cell, for "
    "an object smaller than a cell may cover no cell's centre",
    "control": "the same maps, with a threshold of their own, against the mask of another object of another image, of "
    "the same kind and size where there is one: what the map's position alone is worth",
    "attention_mass": "attention on the image's tokens (of 1), mean over the objects",
    "entropy": "Shannon's entropy of the map inside the image / log(cells), mean over the objects: 0 all on one cell, "
    "1 the same everywhere",
    "size": f"pixels of the mask / pixels of the image: small below {SIZE_BORDERS[0]:.4f}, large from "
    f"{SIZE_BORDERS[1]:.3f} (COCO's 32² and 96² pixels of 640x480)",
    "position": "quarters of the objects by the position in the answer of their first token",
}
_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The maps of a cache, best first, and what they were ranked on."""

    order: list[int]
    scores: list[float]
    """Of the maps in that order."""
    about: dict[str, Any]
    """method, split, samples, objects: as `cache prune` records them."""

    def best(self, count: int) -> tuple[list[int], dict[str, Any]]:
        """The best maps in the order of their numbers, and why these."""
        wanted = sorted(self.order[:count])
        score_of = dict(zip(self.order, self.scores, strict=True))
        return wanted, self.about | {"scores": [round(score_of[each], 4) for each in wanted]}


def record_of(analysis: Analysis, priors: Priors, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of analysis.json. about: split, samples, objects, settings, …, values that JSON can hold."""
    return {
        "schema": SCHEMA,
        "command": "analyze",
        "score": SCORE,
        **about,
        "method": METHOD,
        "identity": digest(priors.identity),
        "cache_identity": priors.identity,
        "groups": group_records(analysis),
        "best": [analysis.labels[number].record() for number in analysis.order()[:_SHOWN]],
        "layers": layer_records(analysis),
        "maps": map_records(analysis),
    }


def write_report(out: Path, record: Mapping[str, Any]) -> None:
    """maps.csv, then analysis.json: where it is, the table is of the same run."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    (out / FILE).unlink(missing_ok=True)
    pyarrow.csv.write_csv(pa.Table.from_pylist([flat(each) for each in record["maps"]]), out / "maps.csv")
    partial = out / f"{FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(out / FILE)


def is_analysis(folder: Path) -> bool:
    """Did an analysis fill this folder?"""
    try:
        return bool(read_record(folder / FILE))
    except PipelineError:
        return False


def read_record(path: Path) -> dict[str, Any]:
    """analysis.json. PipelineError where it is missing or is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: make it with run_pipeline.py analyze") from None
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} can not be read ({error}): make it again with run_pipeline.py analyze") from None
    if not isinstance(record, dict) or record.get("command") != "analyze" or record.get("schema") != SCHEMA:
        raise PipelineError(f"{path} is no analysis that this program made; give the analysis.json of analyze --out")
    return record


def read_ranking(path: Path, identity: Mapping[str, Any]) -> Ranking:
    """The ranking of the maps of a cache with this identity.

    An analysis of other samples of the same LMM will do. PipelineError where the file is no analysis or was made on
    test data; IdentityMismatch, naming every field that differs, where its maps are others.
    """
    record = read_record(path)
    if found := differing(content_of(record["cache_identity"]), content_of(identity)):
        raise IdentityMismatch(
            f"{path} ranks the maps of another cache: "
            f"{'; '.join(f'{each.field}: it has {each.stored}, this cache {each.given}' for each in found)}; "
            "analyze this cache, or give the cache that was analyzed"
        )
    if record["split"] not in CHOOSING:
        raise PipelineError(
            f"{path} was made on the split {record['split']}: maps are not chosen on test data; "
            f"analyze one of {', '.join(CHOOSING)}"
        )
    maps = sorted(record["maps"], key=lambda each: (-each[SCORE], each["map"]))
    about = {"method": record["method"][SCORE], "split": record["split"]}
    about |= {"samples": record["samples"], "objects": record["objects"]}
    return Ranking(order=[each["map"] for each in maps], scores=[each[SCORE] for each in maps], about=about)


def tables(analysis: Analysis) -> str:
    """The best maps and the layers, in percent, to be printed. Controls follow a slash."""
    heading = ["map", "", "> mean ×", "cIoU", "mIoU", "pointing", "mass", "entropy", *_shown_groups(analysis)]
    rows = [[*_main(analysis, number), *_of_groups(analysis, number)] for number in analysis.order()[:_SHOWN]]
    counts = ["objects", "", "", f"{analysis.objects[ALL]}", *[""] * 4]
    counts += [str(analysis.objects[name]) for name in _shown_groups(analysis)]
    layers = [
        [_layer_name(each), f"H{each['best_head']}"]
        + [f"{100 * each[f'{which}_{score}']:.1f}" for score in ("ciou", "pointing") for which in ("best", "mean")]
        for each in layer_records(analysis)
    ]
    return "\n".join(
        [
            "The best maps, percent; after the slash the control (masks of other images); groups: cIoU",
            _table([heading, counts, *rows]),
            "",
            "The layers, percent",
            _table([["layer", "best head", "best cIoU", "mean cIoU", "best pointing", "mean pointing"], *layers]),
        ]
    )


def _main(analysis: Analysis, number: int) -> list[str]:
    label: Label = analysis.labels[number]
    cells = [str(number), str(label), f"{analysis.threshold[OBJECT, number]:g}"]
    for score in ("ciou", "miou", "pointing"):
        cells.append("/".join(f"{100 * value:.1f}" for value in analysis.values(ALL, score, number).values()))
    return [*cells, f"{100 * analysis.mass[number]:.1f}", f"{analysis.entropy[number]:.2f}"]


def _shown_groups(analysis: Analysis) -> list[str]:
    return [name for names in BREAKDOWNS.values() for name in names if name in analysis.groups]


def _of_groups(analysis: Analysis, number: int) -> list[str]:
    return [f"{100 * analysis.groups[name]['ciou'][OBJECT, number]:.1f}" for name in _shown_groups(analysis)]


def _layer_name(record: Mapping[str, Any]) -> str:
    return f"L{record['layer']}" + (f" view {record['view']}" if record["view"] else "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first two to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
