"""`run_pipeline.py evaluate`: a trained head on held-out samples of a cache; numbers, report, pictures."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from manifests.errors import PipelineError
from pipeline.qa import Questions, run_qa
from pipeline.train_head import bytes_read, choose_device, prepare_out, shown_bytes


@dataclass(kw_only=True, slots=True)
class Evaluate:
    """Evaluate a head on all that a cache holds: RES, PNG, ReasonSeg, GCG, keywords. Failed samples are misses.

    The LMM is not needed: what it answered is in the cache. docs/protocols.md says how each number is made.
    """

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
    """Folder for metrics.json, results.md, report.html, sheet.png and objects.parquet (a row per object); default:
    runs/evaluation, or runs/qa."""
    splits: tuple[str, ...] | None = None
    """Only these splits; default: all but train."""
    lam: float = 0.3
    """λ, the keyword selector's threshold, in (0, 1)."""
    similarity: str = "token_f1"
    """What compares GCG's phrases: token_f1 (needs no model, no published number), or a text encoder: folder or HF id
    (the public script's is google-bert/bert-base-uncased)."""
    captions: bool = True
    """METEOR and CIDEr of GCG's captions; they need Java and pip install 'frozen-lmm-grounding[gcg]'."""
    spacy_model: str | None = None
    """A spaCy pipeline (en_core_web_sm, …) whose noun chunks are a rival of the keyword selector; default: none."""
    batch_size: int = 8
    """Samples per step."""
    workers: int | None = None
    """Ray workers; default: one per GPU. One runs in this process, without Ray. The results do not depend on it."""
    data_root: Path | None = None
    """Where the images are now (pictures only); default: where extraction found them."""
    device: str = "auto"
    """cuda, cpu or auto."""
    qa: Questions = field(default_factory=Questions)


def run(args: Evaluate) -> None:
    """Evaluate, write the report, print the table."""
    from cache.priors import Priors
    from manifests.errors import DatasetError
    from stages.evaluate.cases import draw_cases, draw_conversations
    from stages.evaluate.evaluation import is_evaluation
    from stages.evaluate.report import write_report
    from stages.evaluate.results import TABLE, write_objects
    from stages.evaluate.scoring import Outcome, held_out
    from stages.evaluate.stage import summarise
    from stages.evaluate.tables import markdown
    from stages.train_head.heads import head_class
    from stages.train_head.heads.checkpoint import learned_keywords, load_head, require_same_priors
    from stages.train_head.heads.hub import fetch_head

    _require_own_options(args)
    if args.task == "qa":
        run_qa(args.qa, args.out or Path("runs/qa"), args.device)
        return
    out = args.out or Path("runs/evaluation")
    start = time.perf_counter()
    if not 0 < args.lam < 1:
        raise PipelineError(f"--lam {args.lam}: must lie between 0 and 1")
    for option, value in (("--batch-size", args.batch_size), ("--workers", args.workers)):
        if value is not None and value < 1:
            raise PipelineError(f"{option} {value}: must be at least 1")
    priors = Priors.open(args.cache, images_dir=args.images, need_images=False)
    folder = fetch_head(args.head)
    head = load_head(folder, head_class(args.head_class) if args.head_class else None)
    if head.refined_size is not None and priors.images is None:
        priors = Priors.open(args.cache, images_dir=args.images)  # says where they were looked for
    require_same_priors(head, priors.identity, args.head)
    indices = held_out(priors, args.splits)
    texts = _text_models(args)
    prepare_out(out, "evaluation", is_evaluation)
    outcome = Outcome()
    scratch = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")  # what is stopped leaves `out` alone
    parts = _scored(args, folder, indices, outcome)
    objects = write_objects(Path(scratch.name) / TABLE, (each for part in parts for each in part.objects))
    if not learned_keywords(head.record):
        outcome.selects = False
    counts = {"samples": len(indices), "objects": len(objects), "failed samples": len(outcome.failures)}
    about = _about(args, priors, head, folder) | counts
    evaluation = summarise(objects, outcome, priors, head, texts, lam=args.lam, run=about)
    root = args.data_root or Path(str(priors.store.meta.soft.get("data_root", ".")))
    try:
        cases = draw_cases(head, priors, objects, root)
        talks = draw_conversations(head, priors, outcome, root, lam=args.lam)
    except DatasetError as error:
        print(f"no pictures: {error} (--data-root says where the images are)")
        cases, talks = [], []
    (Path(scratch.name) / TABLE).replace(out / TABLE)
    paths = write_report(out, evaluation, cases, talks)
    scratch.cleanup()
    print(markdown(evaluation, breakdown=False))
    print(
        f"evaluate: {len(objects)} objects of {len(indices)} samples, {len(outcome.failures)} samples failed (counted "
        f"as misses); cache: {shown_bytes(bytes_read(priors, head))}; {time.perf_counter() - start:.1f} s\n"
        f"  metrics  {paths.metrics}\n  report   {paths.page}" + (f"\n  pictures {paths.sheet}" if paths.sheet else "")
    )
    per_1000 = round(1000 * outcome.seconds / max(1, len(objects) + len(outcome.conversations)), 2)
    # not in metrics.json: the same evaluation gives the same files, to the last digit
    said = {"seconds": round(outcome.seconds, 2), "s_per_1000_objects": per_1000, "metrics": str(paths.metrics)}
    print(json.dumps(counts | said))


def _require_own_options(args: Evaluate) -> None:
    """PipelineError for an option of the other task: it would change nothing."""
    other = Evaluate()
    if args.task == "qa":
        both = ("task", "out", "device", "qa")
        given = [f.name for f in fields(args) if f.name not in both and getattr(args, f.name) != getattr(other, f.name)]
    else:
        given = [f.name for f in fields(args.qa) if getattr(args.qa, f.name) != getattr(other.qa, f.name)]
    if given:
        raise PipelineError(f"--{given[0].replace('_', '-')} is no option of --task {args.task}: leave it out")


def _text_models(args: Evaluate) -> Any:
    from stages.evaluate.noun_chunks import NounChunks
    from stages.evaluate.similarity import open_similarity
    from stages.evaluate.stage import TextModels

    chunks = NounChunks(args.spacy_model) if args.spacy_model else None
    return TextModels(similarity=open_similarity(args.similarity), noun_chunks=chunks, captions=args.captions)


def _scored(args: Evaluate, folder: Path, indices: list[int], rest: Any) -> Iterator[Any]:
    """What the workers found, unit by unit in order; `rest` (an Outcome) is given all of it but the objects."""
    import torch
    from tqdm import tqdm

    from pipeline.runtime import run_units
    from stages.evaluate.stage import in_order
    from stages.evaluate.worker import EvaluationConfig, EvaluationWorker, units_of

    device = choose_device(args.device)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers, cores = args.workers or max(1, gpus), os.cpu_count() or 1
    config = EvaluationConfig(
        cache=args.cache,
        images=args.images,
        head=str(folder),
        head_class=args.head_class,
        batch_size=args.batch_size,
        device=device,
        lam=args.lam,
        threads=max(1, cores // workers),
    )
    units = units_of(indices, args.batch_size)
    reports = run_units(
        lambda: EvaluationWorker(config),
        units,
        workers=workers,
        local=workers == 1,
        gpus=1 if gpus else 0,
        threads=config.threads,
    )
    start = time.perf_counter()
    with tqdm(total=len(indices), desc="evaluate", unit="sample") as bar:
        for unit, outcome in zip(units, in_order(reports), strict=True):
            rest.add(outcome, objects=False)
            yield outcome
            bar.update(len(unit.indices))
    rest.seconds = time.perf_counter() - start


def _about(args: Evaluate, priors: Any, head: Any, folder: Path) -> dict[str, Any]:
    """What was run, for the report; the identity of cache and head lets nobody mistake it for another run."""
    from stages.train_head.heads.checkpoint import weights_digest

    return {
        "lmm": priors.store.meta.soft.get("lmm", "unknown"),
        "head": f"{head.name}, {sum(p.numel() for p in head.parameters()):,} parameters, {_trained(head.record)}",
        "weights": weights_digest(folder),
        "cache": args.cache,
        "lam": args.lam,
        "data": dict(priors.samples.meta),
        "manifest": priors.samples.digest(),
        **{name.replace("_", " "): value for name, value in bytes_read(priors, head).items()},
        "identity": priors.identity,
    }


def _trained(record: dict[str, Any]) -> str:
    """How a head came to be, from its record."""
    if "recipe" in record:
        return f"{record['recipe']['epochs']} epochs"
    return str(record.get("command", "of unknown origin"))
