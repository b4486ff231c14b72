"""`run_pipeline.py evaluate`: a trained head on held-out samples of a cache; numbers, report, pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from manifests.errors import PipelineError
from pipeline.qa import Questions, run_qa
from pipeline.train_head import bytes_read, choose_device, prepare_out, shown_bytes


@dataclass(kw_only=True, slots=True)
class Evaluate:
    """Evaluate a head: RES cIoU, mIoU, P@X; PNG average recall; keyword precision, recall, F1. Failed samples miss."""

    task: Literal["grounding", "qa"] = "grounding"
    """grounding: masks of a cache's objects.  qa: does the LMM answer questions the same with capture on and off?"""
    cache: str = "runs/cache"
    """A complete cache: a folder, s3://bucket/prefix, or an .h5 file that `cache export` made."""
    images: str | None = None
    """Its image cache, if it is no longer where extraction or the export put it."""
    head: str = "runs/head"
    """Folder of a head that `train-head` made, or one of the Hugging Face Hub: hf://user/name[@revision]."""
    head_class: str | None = None
    """Whose code a head is that is none of this program's: module:Class. It is run."""
    out: Path | None = None
    """Folder for metrics.json, results.md, report.html and sheet.png; default: runs/evaluation, or runs/qa."""
    splits: tuple[str, ...] | None = None
    """Only these splits; default: all but train."""
    lam: float = 0.3
    """λ, the keyword selector's threshold, in (0, 1)."""
    batch_size: int = 8
    """Samples per step."""
    data_root: Path | None = None
    """Where the images are now (pictures only); default: where extraction found them."""
    device: str = "auto"
    """cuda, cpu or auto."""
    qa: Questions = field(default_factory=Questions)


def run(args: Evaluate) -> None:
    """Evaluate, write the report, print the table."""
    from tqdm import tqdm

    from cache.priors import Priors
    from manifests.errors import DatasetError
    from stages.evaluate.report import is_evaluation, markdown, write_report
    from stages.evaluate.stage import draw_cases, held_out, run_head, summarise
    from stages.train_head.heads import head_class
    from stages.train_head.heads.checkpoint import load_head, require_same_priors, weights_digest
    from stages.train_head.heads.hub import fetch_head

    if args.task == "qa":
        run_qa(args.qa, args.out or Path("runs/qa"), args.device)
        return
    args.out = args.out or Path("runs/evaluation")
    start = time.perf_counter()
    if not 0 < args.lam < 1:
        raise PipelineError(f"--lam {args.lam}: must lie between 0 and 1")
    if args.batch_size < 1:
        raise PipelineError(f"--batch-size {args.batch_size}: must be at least 1")
    priors = Priors.open(args.cache, images_dir=args.images, need_images=False)
    folder = fetch_head(args.head)
    head = load_head(folder, head_class(args.head_class) if args.head_class else None)
    if head.refined_size is not None and priors.images is None:
        priors = Priors.open(args.cache, images_dir=args.images)  # says where they were looked for
    require_same_priors(head, priors.identity, args.head)
    indices = held_out(priors, args.splits)
    device = choose_device(args.device)
    prepare_out(args.out, "evaluation", is_evaluation)
    with tqdm(total=len(indices), desc="evaluate", unit="sample") as bar:
        outcome = run_head(head, priors, indices, batch_size=args.batch_size, device=device, on_batch=bar.update)
    soft = priors.store.meta.soft
    objects = len(outcome.referring) + len(outcome.narrative)
    read = bytes_read(priors, head)
    about = {
        "lmm": soft.get("lmm", "unknown"),
        "head": f"{head.name}, {sum(p.numel() for p in head.parameters()):,} parameters, {_trained(head.record)}",
        "weights": weights_digest(folder),
        "cache": args.cache,
        "samples": len(indices),
        "objects": objects,
        "failed samples": len(outcome.failures),
        "lam": args.lam,
        "seconds": round(outcome.seconds, 2),
        "seconds per 1000 objects": round(1000 * outcome.seconds / max(1, objects), 2),
        **{name.replace("_", " "): value for name, value in read.items()},
        "identity": priors.identity,
    }
    evaluation = summarise(outcome, priors, head, lam=args.lam, run=about)
    root = args.data_root or Path(str(soft.get("data_root", ".")))
    try:
        cases = draw_cases(head.to("cpu"), priors, indices, outcome, root)
    except DatasetError as error:
        print(f"no pictures: {error} (--data-root says where the images are)")
        cases = []
    paths = write_report(args.out, evaluation, cases)
    print(markdown(evaluation))
    print(
        f"evaluate: {objects} objects of {len(indices)} samples, {len(outcome.failures)} samples failed (counted as "
        f"misses); cache: {shown_bytes(read)}; {time.perf_counter() - start:.1f} s\n"
        f"  metrics  {paths.metrics}\n  report   {paths.page}" + (f"\n  pictures {paths.sheet}" if paths.sheet else "")
    )


def _trained(record: dict[str, Any]) -> str:
    """How a head came to be, from its record."""
    if "recipe" in record:
        return f"{record['recipe']['epochs']} epochs"
    return str(record.get("command", "of unknown origin"))
