"""Heads beside each other: the same recipe on several conditions and seeds, each run kept as a file.

    found = compare([Job(condition=c, seed=s, out=out) for s in range(3) for c in conditions], processes=2)
    print(table({"all": summaries(found, "all", seeds=3)}, {"all": "the whole head"}))

A comparison that was killed goes on: finished runs are read, unfinished ones go on from their last stored state.
Numbers are of held-out samples on which nothing was chosen; `val_ciou` is what choices between heads may be made by.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import PipelineError
from pipeline.comparison_table import SHARES, Found
from pipeline.train_head import TrainHead, choose_device

if TYPE_CHECKING:
    from cache.priors import Priors
    from manifests.manifest import Samples
    from stages.evaluate.results import ObjectResult
    from stages.evaluate.scoring import Outcome
    from stages.train_head.data import PriorsLike
    from stages.train_head.heads.base import Head
    from stages.train_head.trainer import History


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is trained: a cache, and what differs from a plain `train-head` on it. It must be possible to pickle."""

    name: str
    """Short, for files and JSON."""
    title: str
    """For tables."""
    cache: str
    images: str | None = None
    """Its image cache, if that was moved."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainHead` with other values."""
    view: Callable[[Priors], PriorsLike] | None = None
    """What the head is shown in place of the priors. Not part of a run's key: give another view another name."""
    more: Callable[[PriorsLike, Outcome], dict[str, Any]] | None = None
    """Numbers of the held-out samples beside the usual ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run."""

    condition: Condition
    seed: int
    out: Path
    """Where finished runs are kept."""
    epochs: int | None = None
    """Default: the preset's."""
    device: str = "auto"

    @property
    def args(self) -> TrainHead:
        chosen = {"cache": self.condition.cache, "images": self.condition.images, "seed": self.seed}
        return TrainHead(**chosen | {"epochs": self.epochs, "device": self.device} | self.condition.options)

    @property
    def file(self) -> Path:
        """The result's. Its name holds a digest of all that the run depends on but the code of its head."""
        from cache.identity import digest, plain
        from stages.train_head.heads import head_class
        from stages.train_head.recipe import RECIPES

        args, kind = self.args, head_class(self.args.head)
        fields = asdict(replace(args, cache="", images=None, out=Path(), device=choose_device(args.device)))
        known = {
            "cache": _content(self.condition.cache),
            "args": {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()},
            "head": [plain(asdict(kind.Config())), plain(kind.PRESETS)],
            "torch": version("torch"),
            "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
        }
        return self.out / f"{self.condition.name}-{self.seed}-{digest(known)[:12]}.json"

    def finished(self) -> dict[str, Any] | None:
        """The result, if this run was made before."""
        return json.loads(self.file.read_text()) if self.file.exists() else None


@lru_cache
def _content(cache: str) -> str:
    """A digest of what a cache is."""
    from cache.identity import digest
    from cache.source import open_source

    meta = open_source(cache, "priors").meta
    return digest({"hard": meta.hard(), "files": meta.files})


def run_one(job: Job) -> dict[str, Any]:
    """Train and evaluate one condition with one seed, unless that was done before; everything in it is JSON.

    `SHARES` (of the splits that the cache has), in [0, 1]; val_ciou; parameters; s_per_epoch (median); seconds_fit (a
    training-free head's choice, and loading); bytes_per_object of cache that the condition needs, and their parts.
    """
    from cache.priors import Priors
    from pipeline.head_options import build
    from stages.evaluate.scoring import run_head
    from stages.train_head.trainer import Keeping, train

    if (done := job.finished()) is not None:
        return done
    start, condition, device = time.perf_counter(), job.condition, choose_device(job.device)
    priors = Priors.open(condition.cache, images_dir=condition.images, need_images=False)
    head, recipe = build(job.args, priors, device)
    if head.refined_size is not None and priors.images is None:
        Priors.open(condition.cache, images_dir=condition.images)  # raises: it says where they were looked for
    seen = condition.view(priors) if condition.view else priors
    file = job.file
    keeping = Keeping(file=file.with_suffix(".state"), facts={"run": file.stem})
    started = time.perf_counter()
    # validated once, when it is trained: nothing is chosen during a run, and epochs are timed without it
    history = train(head, seen, replace(recipe, validate=0), device=device, keeping=keeping)
    fitted = time.perf_counter() - started - history.seconds
    outcome = run_head(head, seen, held_out_indices(seen.samples), device=device)
    result: dict[str, Any] = numbers(outcome.objects) | _validated(head, seen, device)
    result |= condition.more(seen, outcome) if condition.more else {}
    result |= {"parameters": sum(p.numel() for p in head.parameters()), "s_per_epoch": s_per_epoch(history)}
    result |= {"seconds_fit": round(max(0.0, fitted), 2), "steps": history.steps, **bytes_needed(priors, head)}
    result |= {"maps": list(head.shape.maps) if head.shape.maps is not None else priors.channels}
    result |= {"failed_samples": len(outcome.failures), "seconds": round(time.perf_counter() - start, 1)}
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result) + "\n")
    temporary.replace(file)
    keeping.file.unlink(missing_ok=True)
    return result


def _validated(head: Head, priors: PriorsLike, device: str) -> dict[str, float]:
    """cIoU over all of the validation split's expressions, by which heads may be chosen; {} if there are none."""
    from stages.train_head.trainer import score
    from stages.train_head.validation import validate

    indices = priors.samples.where(split=["val"], task=["referring"])
    return {"val_ciou": score(validate(head, priors, indices, 8, device))} if indices else {}


def s_per_epoch(history: History) -> float:
    """Median seconds of an epoch, validation not counted; 0 for a head that takes no steps."""
    import statistics
    from itertools import pairwise

    epochs = [after["seconds"] - before["seconds"] for before, after in pairwise(history.validations)]
    return round(statistics.median(epochs), 3) if epochs else 0.0


def bytes_needed(priors: Priors, head: Head) -> dict[str, Any]:
    """Bytes of cache per object, padding included: of the maps that the head looks at, of all hidden states, and of
    SAM's embeddings, spread over the objects, if it refines."""
    objects, stored = max(1, priors.objects()), priors.store.stored_bytes()
    maps = sum(size for name, size in stored.items() if name.startswith("attention"))
    parts = {
        "attention": maps * head.shape.channels / priors.channels,
        "states": sum(stored.values()) - maps,
        "images": sum(priors.images.stored_bytes().values()) if head.refined_size is not None and priors.images else 0,
    }
    each = {name: round(size / objects, 1) for name, size in parts.items()}
    return {"bytes_per_object": round(sum(each.values()), 1), "bytes_parts": each}


def held_out_indices(samples: Samples) -> list[int]:
    """Held-out samples: of referring expressions neither `train` nor `val` (unless there is nothing else), by which
    heads and maps are chosen; of narratives all but `train`."""
    splits = set(samples.labels("split")) - {"train"}
    referring = samples.where(split=splits - {"val"}, task=["referring"])
    referring = referring or samples.where(split=splits, task=["referring"])
    return sorted(referring + samples.where(split=splits, task=["narrative"]))


def numbers(objects: Sequence[ObjectResult]) -> dict[str, float]:
    """`SHARES`, splits and datasets pooled; the shifted scenes by themselves. What has no object is not there."""
    from stages.evaluate.png import summarise_png
    from stages.evaluate.res import summarise_res

    found: dict[str, float] = {}
    for prefix, shifted in (("", False), ("shifted_", True)):
        pooled = [replace(r, dataset="", split="") for r in objects if r.dataset.startswith("shifted") == shifted]
        measures = [*summarise_res(pooled, draws=0), *summarise_png(pooled, draws=0)]
        values = {(m.group, m.metric): m.value.value for m in measures if m.value}
        where = {f"res_{name}": ("all", name) for name in ("ciou", "miou")}
        where |= {f"png_{group}": (group, "average_recall") for group in ("all", "thing", "stuff")}
        found |= {f"{prefix}{name}": values[key] for name, key in where.items() if key in values}
    return found


def compare(jobs: Sequence[Job], processes: int, on_result: Callable[[Found], None] = lambda _: None) -> Found:
    """All runs, what is missing in so many processes side by side, with a progress bar; the estimate is said first.

    on_result is told what is known so far after every run.
    """
    from tqdm import tqdm

    known = [job.finished() for job in jobs]
    found: Found = {(j.condition.name, j.seed): r for j, r in zip(jobs, known, strict=True) if r is not None}
    left = [job for job, result in zip(jobs, known, strict=True) if result is None]
    processes = max(1, min(processes, len(left)))
    told = _estimate([result["seconds"] for result in found.values()], len(left), processes)
    print(f"{len(jobs)} runs, {len(found)} of them done, {len(left)} to do, {processes} at a time{told}", flush=True)
    with tqdm(total=len(jobs), initial=len(found), desc="runs", unit="run", disable=not left) as bar:
        for job, result in _results(left, processes):
            if not told and len(left) > processes:
                told = _estimate([result["seconds"]], len(left), processes)
                bar.write(f"the first run took {result['seconds']:.0f} s{told}")
            found[job.condition.name, job.seed] = result
            shown = next((f"{n} {100 * result[n]:.1f}" for n in (*SHARES, "val_ciou") if n in result), "")
            bar.set_postfix_str(f"{job.condition.name}, seed {job.seed}: {shown}")
            bar.update()
            on_result(found)
    return found


def _estimate(seconds: Sequence[float], runs: int, processes: int) -> str:
    if not seconds or not runs:
        return ""
    minutes = sum(seconds) / len(seconds) * runs / processes / 60
    return f"; about {minutes:.0f} minutes for all of them" if minutes >= 1 else "; about a minute for all of them"


def _results(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with its result, as they come."""
    if processes == 1:
        for job in jobs:
            yield job, run_one(job)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # CUDA can not be forked
    # not multiprocessing's Pool: that waits for ever for a process that the system killed
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(os.getpid(),)) as pool:
        try:
            futures = {pool.submit(run_one, job): job for job in jobs}
            for done in as_completed(futures):
                yield futures[done], done.result()
        except BrokenProcessPool:
            raise PipelineError(
                "a run's process was killed (out of memory?): the same command goes on, with fewer --processes"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(parent: int) -> None:
    """A process of the pool: one thread, Ctrl-C is its parent's business, and it ends when its parent was killed."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
