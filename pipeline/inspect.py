"""`run_pipeline.py manifest | lmms`: look at data and known LMMs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(kw_only=True, slots=True)
class Manifest:
    """build: write a dataset's manifest.   info: count what a dataset, or a manifest file, holds."""

    action: Annotated[Literal["build", "info"], tyro.conf.Positional]
    dataset: str = "scenes"
    """scenes, refcoco, refcoco+, refcocog, refcoco-google, refcocog-google, png, own."""
    data_root: Path | None = None
    """Folder that holds the data (layout: manifests/build.py); default: data/scenes for scenes."""
    splits: tuple[str, ...] | None = None
    """Only these splits."""
    limit: int | None = None
    """Only the first N samples of every split."""
    sentences: Literal["first", "all"] = "first"
    context: Literal["joined", "alone"] = "joined"
    file: Path | None = None
    """build: where to write it (default manifest.parquet); info: a manifest to look at."""


def run_manifest(args: Manifest) -> None:
    from manifests.manifest import Samples, write_manifest
    from manifests.schema import problem
    from pipeline.extract import build_samples

    samples = Samples(args.file) if args.action == "info" and args.file else build_samples(args)
    counts: dict[tuple[str, str], Counter[str]] = {}
    problems = []
    for sample in samples:
        count = counts.setdefault((sample.dataset, sample.split), Counter())
        words = sum(len(piece.text.split()) for piece in sample.pieces)
        count.update(samples=1, objects=len(sample.objects), words=words)
        if reason := problem(sample):
            problems.append({"sample_id": sample.sample_id, "reason": reason})
    if args.action == "build":
        path = args.file or Path("manifest.parquet")
        meta = {"dataset": args.dataset, "sentences": args.sentences, "context": args.context, "limit": args.limit}
        write_manifest(path, samples, meta)
        print(f"wrote {path}")
    for (dataset, split), count in counts.items():
        print(f"{dataset:>16} {split:<8}" + "".join(f"{count[k]:>9} {k}" for k in ("samples", "objects", "words")))
    for each in problems[:20]:
        print(f"  can not be used: {each['sample_id']}: {each['reason']}")
    splits = [{"dataset": d, "split": s, **count} for (d, s), count in counts.items()]
    print(json.dumps({"splits": splits, "problems": len(problems)}))


@dataclass(kw_only=True, slots=True)
class LMMs:
    """List the LMMs that --lmm knows: stored grid, channels (layers x heads), bytes of attention per object, views."""


def run_lmms(_: LMMs) -> None:
    from stages.extract.grids import GRIDS
    from stages.extract.presets import PRESETS, resolve_lmm

    print(f"{'name':<22} {'stored':<7} {'channels':>14} {'bytes/object':>13}  {'--views':<8} {'SAM':<6} source")
    rows = []
    for preset in (resolve_lmm("tiny"), *PRESETS.values()):
        height, width = preset.grid
        channels = f"{preset.attention_layers}x{preset.heads}={preset.channels}"
        views = "1 or 2" if GRIDS[preset.family].fine is not None else "1"
        source = "(in this repository)" if preset.name == "tiny" else preset.source
        print(
            f"{preset.name:<22} {height}x{width:<4} {channels:>14} {preset.object_bytes:>13,}  {views:<8} "
            f"{preset.sam:<6} {source}"
        )
        rows.append({
            "name": preset.name, "source": source, "family": preset.family, "grid": preset.grid,
            "channels": preset.channels, "bytes_per_object": preset.object_bytes, "views": views, "sam": preset.sam,
        })  # fmt: skip
    print(json.dumps({"lmms": rows}))
