"""`run_pipeline.py analyze`: which layers and heads localise, from a cache alone; table, heat map, pictures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import PipelineError
from pipeline.train_head import prepare_out


@dataclass(kw_only=True, slots=True)
class Analyze:
    """Score every attention map of a cache against the masks; neither the LMM nor a head is needed."""

    cache: str = "runs/cache"
    """A complete cache: a folder, s3://bucket/prefix, or an .h5 file that `cache export` made."""
    images: str | None = None
    """Its image cache, if it was moved. It is not needed: it only says which images failed."""
    out: Path = Path("runs/analysis")
    """Folder for analysis.json, maps.csv, heads.png and clusters.png."""
    split: str = "train"
    """Samples of this split. Maps are chosen (`cache prune --ranking`) on train or val only."""
    samples: int = 300
    """So many samples at most, evenly spread over the split."""
    data_root: Path | None = None
    """Where the images are now (pictures only); default: where extraction found them."""
    clusters: int = 6
    """K of K-means (pictures only)."""
    pictures: int = 6
    """Objects in clusters.png; 0: none."""
    seed: int = 0
    """Of the controls and of K-means."""


def run(args: Analyze) -> None:
    """Measure, write, print the tables; the last line is JSON."""
    from tqdm import tqdm

    from cache.priors import Priors
    from stages.analyze.labels import labels_of
    from stages.analyze.measure import measure
    from stages.analyze.objects import subjects_of
    from stages.analyze.report import is_analysis, record_of, tables, write_report
    from stages.analyze.results import summarise
    from stages.train_head.overlaps import spread

    start = time.perf_counter()
    for name, least in (("samples", 1), ("clusters", 2), ("pictures", 0), ("seed", 0)):
        if (value := getattr(args, name)) < least:
            raise PipelineError(f"--{name} {value}: must be at least {least}")
    priors = Priors.open(args.cache, images_dir=args.images, need_images=False, memory_bytes=0)
    try:
        chosen = spread(priors, args.split, args.samples)
    except PipelineError as error:
        raise PipelineError(f"{error}; give one of them: --split") from None
    prepare_out(args.out, "analysis", is_analysis)
    subjects = subjects_of(priors, chosen, args.seed)
    measuring = time.perf_counter()
    with tqdm(total=len(subjects.objects), desc="analyze", unit="object") as bar:
        sums = measure(priors, subjects, bar.update)
    seconds = time.perf_counter() - measuring
    analysis = summarise(sums, labels_of(priors.identity), subjects.controlled)
    about: dict[str, Any] = {
        "cache": args.cache,
        "split": args.split,
        "samples": len(chosen),
        "objects": len(subjects.objects),
        "seed": args.seed,
        "position_quartiles": list(subjects.quartiles),
        "objects_per_s": round(len(subjects.objects) / max(1e-9, seconds), 1),
    }
    write_report(args.out, record_of(analysis, priors, about))
    drawn = _draw(args, priors, analysis, subjects.objects)
    print(tables(analysis))
    print(
        f"analyze: {about['objects']} objects of {about['samples']} samples of {args.split}, {len(analysis.labels)} "
        f"maps, {about['objects_per_s']} objects/s; {time.perf_counter() - start:.1f} s"
    )
    best = analysis.order()[0]
    line = {"command": "analyze", "out": str(args.out), **about, "maps": len(analysis.labels)}
    line |= {"best": analysis.labels[best].record() | analysis.values("all", "ciou", best)}
    print(json.dumps(line | {"files": ["analysis.json", "maps.csv", *drawn]}))


def _draw(args: Analyze, priors: Any, analysis: Any, objects: Any) -> list[str]:
    """The pictures that could be drawn: their names. Images are opened here only."""
    from manifests.errors import DatasetError
    from stages.analyze.labels import shape_of
    from stages.analyze.pictures import chosen_subjects, draw_clusters, draw_heat_map

    for name in ("heads.png", "clusters.png"):  # of an earlier run
        (args.out / name).unlink(missing_ok=True)
    drawn = [draw_heat_map(analysis, shape_of(priors.identity), args.out / "heads.png").name]
    root = args.data_root or Path(str(priors.store.meta.soft.get("data_root", ".")))
    if shown := chosen_subjects(objects, args.pictures):
        path = args.out / "clusters.png"
        try:
            draw_clusters(priors, analysis, shown, root, path, clusters=args.clusters, seed=args.seed)
            drawn.append(path.name)
        except DatasetError as error:
            print(f"no pictures of clusters: {error} (--data-root says where the images are)")
    return drawn
