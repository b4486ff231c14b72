"""What samples hold, split by split, and what extracting them would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import ModelError

if TYPE_CHECKING:
    from manifests.schema import Sample

_COUNTS: Final = ("samples", "images", "expressions", "objects", "tokens")
SHOWN: Final = 20
"""Samples that can not be used and are named."""


class Counter:
    """Counts of every (dataset, split); the order is that of the samples."""

    def __init__(self, lmm: str, meta: dict[str, Any], root: Path | None) -> None:
        """lmm: whose tokens and bytes.  meta: the manifest's.  root: where images are looked for, None: nowhere."""
        from stages.extract.presets import resolve_lmm

        self.lmm, self.meta, self.root = resolve_lmm(lmm), meta, root
        self.text, self.estimated = _text_of(self.lmm)
        self.splits: list[dict[str, Any]] = []
        self.problems: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.bytes = {"priors_bytes": 0, "image_bytes": 0}

    def add(self, samples: Sequence[Sample]) -> None:
        """Count all samples of a manifest."""
        by_split: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            by_split.setdefault((sample.dataset, sample.split), []).append(sample)
        for (dataset, split), found in by_split.items():
            self.splits.append({"dataset": dataset, "split": split, **self._split(split, found)})
        whole = self.splits[0] if len(self.splits) == 1 else self._planned(samples)
        self.bytes = {name: whole[name] for name in self.bytes}

    def result(self) -> dict[str, Any]:
        """JSON: `splits`, each with its counts, and totals; bytes of all splits together are planned as one cache."""
        return {
            "splits": self.splits,
            "problems": len(self.problems),
            "warnings": self.warnings,
            "lmm": self.lmm.name,
            "tokens_estimated": self.estimated,
            **self.bytes,
        }

    def _split(self, split: str, samples: list[Sample]) -> dict[str, Any]:
        from manifests.cards import differences, official_counts

        images = {sample.image_path for sample in samples}
        counts: dict[str, Any] = {
            "samples": len(samples),
            "images": len(images),
            "expressions": sum(len(sample.objects) for sample in samples),
            "objects": len({item.object_id for sample in samples for item in sample.objects}),
            "words": sum(len(piece.text.split()) for sample in samples for piece in sample.pieces),
        }
        counts |= self._planned(samples)
        self.problems += counts.pop("reasons")
        missing = 0 if self.root is None else sum(not (self.root / path).is_file() for path in images)
        dataset = str(self.meta.get("dataset"))
        counts |= {"missing_images": missing, "official": official_counts(dataset, split)}
        if self.meta.get("limit") is None and not self.meta.get("decontaminated"):
            every = (self.meta.get("sentences"), self.meta.get("context")) == ("all", "alone")
            names = ("images", "objects", "expressions") if every else ("images", "objects")
            self.warnings += differences(dataset, split, {name: counts[name] for name in names})
        return counts

    def _planned(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Tokens of the answers and of their objects' words, bytes of a cache of them alone, samples that fail.

        A question is judged as if the LMM had answered it, and not planned: how long answers are is not known yet.
        """
        import pyarrow.compute as pc

        from manifests.schema import Reply, problem
        from stages.extract.plan import make_plan, plan_images
        from stages.extract.sam import sam_config

        asked = [sample for sample in samples if sample.task == "reasoning" and sample.reply is None]
        answered = Reply(ids=(0,), words=(0,), text="?", finished=True)
        reasons = [(s.sample_id, why) for s in asked if (why := problem(replace(s, reply=answered)))]
        told = [sample for sample in samples if sample.task != "reasoning" or sample.reply is not None]
        sam = sam_config(self.lmm.sam)
        images = plan_images(told, self.root or Path(), sam, hashed=False)
        plan = make_plan(told, self.text, self.lmm, sam, images, batch_size=1)
        reasons += [(told[failure["sample"]].sample_id, failure["reason"]) for failure in plan.failures]
        tokens = {
            name: pc.sum(pc.list_value_length(plan.rows.column(column))).as_py() or 0
            for name, column in (("tokens", "answer_ids"), ("object_tokens", "token_positions"))
        }
        planned = {"priors_bytes": plan.priors_bytes, "image_bytes": plan.image_bytes}
        return {**tokens, **planned, "questions": len(asked), "problems": len(reasons), "reasons": reasons}


def _text_of(lmm: Any) -> tuple[Any, bool]:
    """The LMM's tokenizer where it is on this machine, else an estimate; and whether it is one."""
    from stages.extract.processor import LMMProcessor
    from stages.extract.texts import WordCount

    try:
        return LMMProcessor(lmm, download=False), False
    except ModelError:
        return WordCount(lmm), True


def print_counts(counter: Counter) -> None:
    """A table, a line of official numbers under every split that has them, and what is wrong."""
    if not counter.splits:
        return
    print(
        f"{'dataset':>16} {'split':<8}"
        + "".join(f"{name:>12}" for name in (*_COUNTS, "priors GB", "SAM GB", "problems"))
    )
    for row in counter.splits:
        gigabytes = "".join(f"{row[name] / 1e9:>12.3f}" for name in ("priors_bytes", "image_bytes"))
        counts = "".join(f"{row[name]:>12,}" for name in _COUNTS)
        print(f"{row['dataset']:>16} {row['split']:<8}{counts}{gigabytes}{row['problems']:>12,}")
        if row["official"]:
            known = "".join(
                f"{row['official'][name]:>12,}" if name in row["official"] else f"{'':>12}" for name in _COUNTS
            )
            print(f"{'officially':>25}{known}")
        if row["missing_images"]:
            print(f"{'':>26}{row['missing_images']:,} of its images are not there")
        if row["questions"]:
            print(f"{'':>26}{row['questions']:,} questions: tokens and bytes are known when the LMM has answered")
    note = " (estimated: its tokenizer is not on this machine)" if counter.estimated else ""
    print(
        f"of {counter.lmm.name}: tokens of the answers{note}"
        f"; one cache of all: priors {counter.bytes['priors_bytes'] / 1e9:.3f} GB, SAM embeddings "
        f"{counter.bytes['image_bytes'] / 1e9:.3f} GB ({counter.lmm.sam})"
    )
    for sample_id, reason in counter.problems[:SHOWN]:
        print(f"  can not be used: {sample_id}: {reason}")
    for warning in counter.warnings:
        print(f"warning: {warning}")
