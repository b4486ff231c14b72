"""`run_pipeline.py extract`: run the frozen LMM and SAM once over a dataset and fill the cache."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from manifests.errors import ModelError, PipelineError, Stopped
from pipeline.samples import build_samples, data_root

DEFAULT_BATCH = 8
IN_FLIGHT = 3  # units of a worker with a GPU: one is read, one computed, one written


@dataclass(kw_only=True, slots=True)
class Extract:
    """Run the frozen LMM once over a dataset; keep attention priors, hidden states and SAM embeddings in a cache.

    Run it again after a kill: it does what is missing. Bare: the embedded tiny LMM on generated scenes.
    """

    lmm: str = "tiny"
    """Preset (see `lmms`), a folder with a checkpoint, or a Hugging Face id."""
    dataset: str = "scenes"
    """scenes (generated here), refcoco, refcoco+, refcocog, png, own, own-coco, … (see `manifest build --help`)."""
    data_root: Path | None = None
    """Folder that holds the data; default: data/scenes for scenes."""
    cache: str = "runs/cache"
    """Where the priors go: a folder or s3://bucket/prefix."""
    images: str | None = None
    """Where the SAM embeddings go, or are already; default: CACHE/images."""
    splits: tuple[str, ...] | None = None
    """Only these splits."""
    limit: int | None = None
    """Only the first N samples of every split."""
    sentences: Literal["first", "all"] = "first"
    """RefCOCO: which sentences of an object become samples; ReasonSeg: which questions of an image."""
    store_grid: Literal["native", "64"] = "native"
    """Attention maps as the LMM has them, or 64x64 as heads read them; always 64 where the grid follows the image."""
    views: Literal[1, 2] = 1
    """1: maps of the whole image.  2: also those of its tiles, joined (LLaVA-NeXT, InternVL, … see docs/lmms.md)."""
    context: Literal["joined", "alone"] = "joined"
    """RefCOCO, own-coco: an image's expressions in one text, or each alone."""
    decontaminate: bool = False
    """Leave out training samples whose image is in an evaluation split of any dataset under --data-root."""
    merge: Literal["mean", "max"] = "mean"
    """How the attention of an object's words becomes one map."""
    answer: bool = True
    """The LMM answers first where its own answer is grounded: ReasonSeg's questions, and GCG's prompts outside of the
    split train. Without: GCG's reference captions instead, and no questions."""
    max_answer_tokens: int = 256
    """An answer is cut off there."""
    batch_size: int | Literal["auto"] = DEFAULT_BATCH
    """Samples per forward pass, part of the plan; auto: measured before planning, with the longest sample."""
    dtype: str | None = None
    """float32, bfloat16 or float16 for the LMM; default: the preset's."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """What the LMM itself runs; auto: sdpa, or eager where sdpa can not run it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the LMM's checkpoint. Read it first."""
    device: str = "auto"
    """cuda (all GPUs), cuda:N, cpu or auto."""
    sam: str | None = None
    """tiny, vit_b, vit_l, vit_h; default: the preset's."""
    sam_checkpoint: Path | None = None
    """SAM's weights; default: torch's hub folder, or the embedded ones."""
    workers: int | None = None
    """Ray actors; default: as many as the GPUs allow, or one per CPU core (at most 8)."""
    gpus_per_worker: int = 1
    """More than one for LMMs larger than one GPU: their layers are spread over so many."""
    local: bool = False
    """One worker in this process, without Ray."""
    ray_address: str | None = None
    """Use a running Ray cluster; this code, the data and the caches must be at the same paths on all its nodes."""
    unit_deadline: float = 60
    """Minutes; a worker that is busy for so long without ending a unit is killed, others do its units. Not if local."""
    dry_run: bool = False
    """Print the plan and stop; needs no weights (generated scenes are written if they are not there)."""
    overwrite: bool = False
    """Delete a cache of other settings at --cache first; never one at --images."""

    @property
    def elsewhere(self) -> bool:
        """Whether a cluster runs it, whose GPUs this machine does not know."""
        return bool(self.ray_address) and not self.local


def run(args: Extract) -> None:
    """Plan, print the plan, run what is missing, print and write what it cost."""
    import torch
    from tqdm import tqdm

    from cache.create import META
    from pipeline.answers import answered

    start = time.perf_counter()
    extraction = _prepare(args)
    gpus = torch.cuda.device_count() if extraction.device == "cuda" else int(extraction.device.startswith("cuda:"))
    cores = os.cpu_count() or 1
    workers = 1 if args.local else args.workers or (max(1, gpus // extraction.gpus) if gpus else min(cores, 8))
    if gpus and not args.elsewhere and workers * extraction.gpus > gpus:
        raise PipelineError(
            f"--workers {workers} with {extraction.gpus} GPU(s) each: there are {gpus}, for "
            f"{gpus // extraction.gpus} worker(s)"
        )
    threads = max(1, cores // workers)
    if not args.dry_run and extraction.cache.size(META) is not None:
        with extraction.cache.sole_writer():  # said now, not after minutes of hashing and planning
            pass
    options: dict[str, Any] = {
        "workers": workers,
        "local": args.local,
        # Ray gives each actor its share of all GPUs; a numbered one is used as it was named
        "gpus": extraction.gpus if extraction.device == "cuda" else 0,
        "threads": threads,
        "in_flight": IN_FLIGHT if extraction.gpus else 1,
        "address": args.ray_address,
        "deadline": 60 * args.unit_deadline,
    }
    hashing = lambda paths: tqdm(paths, desc="hashing images", unit="image", leave=False)  # noqa: E731
    hashed = extraction.hashed_images(dry_run=args.dry_run, progress=hashing)
    text = _text(args, extraction)
    news = answered(args, extraction, hashed, text, options) if args.answer else {}
    if args.batch_size == "auto":
        known = None if args.overwrite else extraction.planned_batch_size()
        measure = partial(_measured_batch_size, extraction, args, threads)
        extraction.batch_size = known or (DEFAULT_BATCH if args.dry_run else measure)
    plan = extraction.plan(hashed, text)
    _print_plan(args, extraction, plan, workers, gpus, news)
    if args.dry_run:
        return
    with extraction.writing(plan, overwrite=args.overwrite) as (images, priors):
        _fill(extraction, plan, images, priors, options, planning=time.perf_counter() - start)


def _fill(extraction: Any, plan: Any, images: Any, priors: Any, options: dict[str, Any], *, planning: float) -> None:
    """Run the units that are missing. options: of `run_units`."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from pipeline.extract_record import Record
    from pipeline.runtime import run_units
    from stages.extract.stage import close, work_left
    from stages.extract.worker import ExtractionWorker

    todo = work_left(images, priors)
    record = Record.load(extraction, images, priors)
    if not todo and record.complete:
        print(record.summary("nothing was left to do; "))
        return
    record.begin(planning=planning)
    config = extraction.worker(options["threads"])
    reports = run_units(lambda: ExtractionWorker(config), todo, **options, counts=record.faults)
    try:
        with logging_redirect_tqdm():
            for report in shown(reports, todo, plan):
                record.add(report)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped: {len(images.missing_units()) + len(priors.missing_units())} of {len(todo)} units are left; "
            "run the same command again to go on"
        ) from None
    close(images, priors, plan)
    record.finish(plan)
    print(record.summary())


def _measured_batch_size(extraction: Any, args: Extract, threads: int, longest: Any) -> int:
    """Run the longest sample in larger and larger batches, where the extraction will run."""
    import torch

    from pipeline.runtime import run_units
    from stages.extract.batch_size import BatchSizeProbe, Longest

    print("measuring the batch size", flush=True)
    config = extraction.worker(threads)
    gpus = extraction.gpus if extraction.device == "cuda" else 0
    units = [Longest(sample=longest)]
    options: dict[str, Any] = {"local": args.local, "gpus": gpus, "threads": threads, "address": args.ray_address}
    (report,) = run_units(lambda: BatchSizeProbe(config), units, workers=1, **options)
    gc.collect()  # a model that is spread over GPUs is freed by this only
    if extraction.gpus and args.local:
        torch.cuda.empty_cache()
    for trial in report["trials"]:
        print(f"{trial['size']:>10.0f}  {trial['samples_per_s']:.3g} samples/s, {trial['peak_gib']:.2f} GiB at most")
    return report["batch_size"]


def shown(reports: Iterable[dict[str, Any]], todo: Sequence[Any], plan: Any) -> Iterator[dict[str, Any]]:
    """The workers' reports as they come, with a bar for images and one for objects: rates and failures of this run."""
    from tqdm import tqdm

    counts = {"images": plan.images_of_units, "priors": plan.objects_of_units}
    totals = {kind: sum(int(counts[kind][unit.number]) for unit in todo if unit.kind == kind) for kind in counts}
    names = {"images": "image", "priors": "object"}
    bars = {kind: tqdm(total=totals[kind], desc=f"{names[kind]}s", unit=names[kind]) for kind in names if totals[kind]}
    written: Counter[str] = Counter()
    failed = {"images": 0, "priors": len(plan.failures)}
    last = time.time()
    try:
        for report in reports:
            kind = report["kind"]
            bar = bars[kind]
            if not written[kind]:  # its clock starts with its first unit: when the last unit of the other kind ended
                bar.start_t = bar.last_print_t = last
            written[kind] += report["bytes"]
            failed[kind] += len(report["failures"])
            bar.update(int(counts[kind][report["unit"]]))
            rate = written[kind] / 1e6 / max(1e-9, bar.format_dict["elapsed"])
            bar.set_postfix_str(f"{rate:.0f} MB/s, {failed[kind]} failed")
            last = time.time()
            yield report
    finally:
        for bar in bars.values():
            bar.close()


def _prepare(args: Extract) -> Any:
    """The dataset's samples and everything that identifies the run."""
    import torch

    from cache.places import place_of
    from pipeline.extract_settings import settings_of
    from stages.extract.lmm import require_attention
    from stages.extract.presets import STORED, resolve_lmm
    from stages.extract.stage import Extraction

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    size = 1 if args.batch_size == "auto" else args.batch_size
    numbers = [size, args.gpus_per_worker, args.max_answer_tokens, 1 if args.limit is None else args.limit]
    if min(*numbers, 1 if args.workers is None else args.workers) < 1:
        raise PipelineError(
            "--batch-size, --max-answer-tokens, --limit, --workers and --gpus-per-worker must be at least 1"
        )
    if not args.unit_deadline > 0:
        raise PipelineError(f"--unit-deadline {args.unit_deadline}: must be more than 0 minutes")
    lmm = resolve_lmm(args.lmm, trust_remote_code=args.trust_remote_code).with_views(args.views)
    lmm = replace(lmm, attention=args.attention)
    if args.store_grid == "64":
        lmm = replace(lmm, grid=STORED)
    dtype = args.dtype or lmm.dtype
    if dtype not in ("float32", "bfloat16", "float16"):
        raise PipelineError(f"--dtype {dtype}: float32, bfloat16 or float16")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = ["cuda", *gpus, "cpu"] if gpus else ["cpu"]
    if args.device not in ("auto", *devices):
        raise PipelineError(f"--device {args.device}: torch has {', '.join(devices)} here; give one of them, or auto")
    device = devices[0] if args.device == "auto" else args.device
    most = len(gpus) if device == "cuda" else 1
    if args.gpus_per_worker > most and not args.elsewhere:
        raise PipelineError(f"--gpus-per-worker {args.gpus_per_worker}: --device {device} has {most} at most")
    if not (args.dry_run or args.elsewhere):
        require_attention(args.attention, dtype)
    root = data_root(args.dataset, args.data_root)
    cache = place_of(args.cache)
    samples, meta = build_samples(args)
    return Extraction(
        samples=samples,
        data_root=root,
        cache=cache,
        images=place_of(args.images) if args.images else cache.at("images"),
        lmm=lmm,
        dtype=dtype,
        merge=args.merge,
        sam=args.sam or lmm.sam,
        sam_checkpoint=args.sam_checkpoint,
        device=device,
        gpus=0 if device == "cpu" else args.gpus_per_worker,
        batch_size=DEFAULT_BATCH if args.batch_size == "auto" else args.batch_size,
        meta=meta,
        settings=settings_of(args),
    )


def _text(args: Extract, extraction: Any) -> Any:
    """The LMM's tokenizer; in a dry run without it an estimate."""
    from stages.extract.processor import LMMProcessor
    from stages.extract.texts import WordCount

    if not args.dry_run:
        return LMMProcessor(extraction.lmm)
    try:
        return LMMProcessor(extraction.lmm, download=False)
    except ModelError:
        return WordCount(extraction.lmm)


def _print_plan(args: Extract, extraction: Any, plan: Any, workers: int, gpus: int, news: dict[str, str]) -> None:
    disk = extraction.cache.disk()
    where = f"{gpus} GPU(s)" if gpus else f"CPU, {os.cpu_count()} cores"
    lmm = extraction.lmm
    height, width = lmm.grid
    measured_later = args.dry_run and args.batch_size == "auto"
    said = " and words of replies" if news else ""
    rows = {
        "LMM": f"{lmm.name} ({lmm.source}), {extraction.dtype}, merge {extraction.merge}",
        "attention": f"{lmm.attention_layers} layers x {lmm.heads} heads"
        + (f" x {lmm.views} views" if lmm.views > 1 else "")
        + f", stored as {height}x{width}",
        "SAM": extraction.sam,
        "samples": f"{len(plan.rows)} ({len(plan.failures)} can not be used), {plan.objects} objects{said}; at most "
        f"{plan.batch_size} in a forward pass" + (" (not measured in a dry run)" if measured_later else ""),
        **news,
        "images": f"{len(plan.image_rows)} different",
        "to write": f"priors {plan.priors_bytes / 1e9:.3f} GB, SAM embeddings {plan.image_bytes / 1e9:.3f} GB "
        f"({plan.units} + {plan.image_units} units)",
        "free disk": f"{disk.free / 1e9:.1f} GB" if disk else "not limited",
        "device": f"{where}, " + ("one worker in this process" if args.local else f"{workers} Ray worker(s)"),
        "cache": str(extraction.cache),
    }
    from stages.extract.texts import WordCount

    if args.dry_run and isinstance(_text(args, extraction), WordCount):
        rows["note"] = "the LMM's tokenizer is not on this machine: token counts are estimated"
    print("\n".join(f"{name:>10}  {value}" for name, value in rows.items()), flush=True)
