"""The result file of `extract`: what it did and what it cost, over all the runs that one cache took."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from typing import Any, Final

from cache.places import Place

ENDING: Final = ".extract.json"


class Record:
    """CACHE.extract.json, beside the cache, for the cache's own bytes are the plan's.

    It is written after every unit, so that a run that was killed is counted by the one that resumes it.
    """

    def __init__(self, cache: Place, images: Place, plan: str, values: dict[str, Any]):
        self.cache, self.images, self.plan, self.values = cache, images, plan, values
        self.path = f"{cache.name}{ENDING}"
        self.done: Counter[str] = Counter(values.get("extracted", {}))
        self.faults = Counter({name: values.get(name, 0) for name in ("restarts", "retries")})
        self.seconds: defaultdict[str, float] = defaultdict(float, values.get("seconds", {}))

    @classmethod
    def load(cls, extraction: Any, images: Any, priors: Any) -> Record:
        """What earlier runs of the same plan recorded; empty for another plan, or a cache that was deleted since."""
        cache = extraction.cache
        record = cls(cache, extraction.images, priors.commits.plan, {})
        try:
            values = json.loads(cache.read_beside(ENDING))
            same = values["plan"] == priors.commits.plan
            begun = priors.committed_units() or (not values["complete"] and images.committed_units())
        except (OSError, ValueError, KeyError, TypeError):
            return record
        if not (same and begun):
            return record
        values["complete"] = bool(values["complete"] and images.complete and priors.complete)
        return cls(cache, extraction.images, priors.commits.plan, values)

    @property
    def complete(self) -> bool:
        return bool(self.values.get("complete"))

    def begin(self, planning: float) -> None:
        """This run starts on the units; it has planned for so many seconds."""
        self.seconds["planning"] += planning
        self.started = time.perf_counter() - self.seconds["total"] - planning
        self._write(complete=False)  # better now than after the first unit, if it can not be written

    def add(self, report: dict[str, Any]) -> None:
        """Count one unit's report and write the file."""
        name = "images" if report["kind"] == "images" else "objects"
        self.done.update({name: report[name], "bytes": report["bytes"]})
        for part, value in report["seconds"].items():
            self.seconds[f"workers_{part}"] += value
        self._write(complete=False)

    def finish(self, plan: Any) -> None:
        """Everything is in the cache: write its totals."""
        from cache.priors import Priors

        priors = Priors.open(self.cache, images_dir=self.images)
        self._write(
            complete=True,
            samples=len(plan.rows),
            objects=plan.objects,
            counted=priors.counted(),
            failed_samples=len(priors.failures),
            bytes_per_object=round(plan.priors_bytes / max(1, plan.objects), 1),
            bytes_per_image=round(plan.image_bytes / max(1, len(plan.image_rows)), 1),
            padding_objects=plan.padding,
        )

    def _write(self, **more: Any) -> None:
        self.seconds["total"] = time.perf_counter() - self.started
        working = self.seconds["total"] - self.seconds["planning"]
        self.values = {
            "command": "extract",
            "cache": str(self.cache),
            "plan": self.plan,
            "extracted": dict(self.done),
            "restarts": self.faults["restarts"],
            "retries": self.faults["retries"],
            "seconds": {name: round(value, 2) for name, value in sorted(self.seconds.items())},
            "objects_per_s": float(f"{self.done['objects'] / max(1e-9, working):.3g}"),
        } | more
        self.cache.write_beside(ENDING, json.dumps(self.values, indent=1).encode() + b"\n")

    def summary(self, news: str = "") -> str:
        """One line for the terminal, and where failures are listed."""
        v = self.values
        line = (
            f"extract: {news}{v['objects']} {v.get('counted', 'objects')} of {v['samples']} samples, "
            f"{v['failed_samples']} samples failed; "
            f"{v['bytes_per_object']:,.0f} bytes/object (+ {v['bytes_per_image']:,.0f} per image); "
            f"{v['seconds']['total']:.1f} s ({v['objects_per_s']} objects/s); result: {self.path}"
        )
        if v["failed_samples"]:
            line += f"\n  failed samples and reasons: failures.jsonl in {self.cache} and in {self.images}"
        return line
