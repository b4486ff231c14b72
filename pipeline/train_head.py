"""`run_pipeline.py train-head`: train a grounding head from the cache alone."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from manifests.errors import PipelineError

BEST, LOGS = "best", "logs"  # folders in --out
HEAD_FILES = ("model.safetensors", "training.json", "config.json")


@dataclass(kw_only=True, slots=True)
class TrainHead:
    """Train a grounding head from a cache; neither the LMM nor an image is opened. Killed? The same command goes on."""

    cache: str = "runs/cache"
    """A complete cache: a folder, s3://bucket/prefix, or an .h5 file that `cache export` made."""
    images: str | None = None
    """Its image cache, if it is no longer where extraction or the export put it."""
    out: Path = Path("runs/head")
    """Folder for the head (weights, config, training.json), the best one of the validations in best/, logs/."""
    head: str = "unet-sam"
    """unet-sam (F-LMM's), another head of this program (an unknown name lists them), or your own: module:Class."""
    preset: Literal["auto", "paper", "demo"] = "auto"
    """Sizes and recipe: paper's, or small ones for the embedded default; auto: demo for LMMs of under 128 maps."""
    option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """One of the head's own options, NAME=VALUE as --option base_width=32; may be given several times."""
    refiner: bool = True
    """Refine the coarse masks with SAM."""
    prompt_mask: bool = True
    """Prompt SAM with the coarse mask."""
    prompt_box: bool = True
    """Prompt SAM with the coarse mask's box."""
    prompt_text: bool = True
    """Prompt SAM with the words' hidden states."""
    input_size: int | None = None
    """Side to which maps are resized; 0: the LMM's own grid; default: the preset's (64 in the paper)."""
    layers: str | None = None
    """Only attention of these layers of the LMM: 8-15, or 0,3,5."""
    channels: str | None = None
    """Only the K maps that agree best with training masks: 64; or which ones: 0,5,17 (layer * heads + head)."""
    init_from: str | None = None
    """Begin with these weights: a head (folder, hf://user/name), or a published F-LMM checkpoint (non-commercial)."""
    epochs: int | None = None
    """Passes over the training samples; default: the preset's."""
    lr: float | None = None
    """Peak learning rate; default: the preset's."""
    batch_size: int = 8
    """Samples of a batch, for each worker."""
    accumulate: int = 1
    """Batches of a step, for each worker: larger steps in the same memory."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16: mixed precision, weights stay float32; auto: bf16 on a GPU with the preset paper."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is validated and kept instead, as 0.999; 0: none."""
    validate_every: int = 0
    """Steps between further validations; 0: only before the first step and after every epoch."""
    seed: int = 0
    device: str = "auto"
    """cuda, cpu or auto."""
    workers: int = 1
    """GPUs (or, with --device cpu, processes) that train together, through Ray Train (the extra `train`)."""
    ray_address: str | None = None
    """A running Ray cluster for more than one worker; --cache and --out must be at the same paths on all its nodes."""
    memory_gb: float = 2.0
    """RAM for samples that stay decoded between epochs, for each worker."""
    readers: int | None = None
    """Threads that read the cache, for each worker; default: 1 on the CPU, up to 4 for a GPU."""
    checkpoint_minutes: float = 2.0
    """Minutes between stored states, from which a killed training goes on; 0: after every step."""
    restart: bool = False
    """Begin anew where an unfinished training lies in --out."""
    sam_checkpoint: Path | None = None
    """SAM's weights that the refiner starts from; default as in extract."""


def run(args: TrainHead) -> None:
    """Train, save, print the scores and what it cost."""
    if args.workers < 1:
        raise PipelineError(f"--workers {args.workers}: must be at least 1")
    if args.readers is not None and args.readers < 1:
        raise PipelineError(f"--readers {args.readers}: must be at least 1")
    for name in ("memory_gb", "checkpoint_minutes"):
        if not 0 <= getattr(args, name) < math.inf:
            raise PipelineError(f"--{name.replace('_', '-')} {getattr(args, name)}: must not be negative")
    device = choose_device(args.device)
    if args.workers > 1:
        from pipeline.train_workers import run_workers

        prepare(args, device)  # what is wrong with the arguments is said before Ray starts
        if args.restart:
            _forget(args.out)
        record = run_workers(replace(args, restart=False))  # a lost worker is no reason to begin anew
    else:
        record = train_here(args, device)
    print(summary(args, record))


def train_here(args: TrainHead, device: str) -> dict[str, Any]:
    """Train in this process, alone or as one of the workers of torch.distributed's group; -> training.json."""
    from cache.identity import digest
    from pipeline.training_log import TrainingLog
    from stages.train_head.heads.checkpoint import save_head
    from stages.train_head.state import STATE_FILE
    from stages.train_head.team import Team
    from stages.train_head.trainer import Keeping, train

    start, team = time.perf_counter(), Team.of_process()
    priors, head, recipe = prepare(args, device, of_team=team.size > 1)
    state = args.out / STATE_FILE
    if team.leads and (args.restart or not state.exists()):
        _forget(args.out)
    facts = {"head": head.name, "shape": asdict(head.shape), "config": asdict(head.config), "device": device}
    facts |= {"init_from": args.init_from, "provenance": head.record.get("provenance")}
    keeping = Keeping(file=state, minutes=args.checkpoint_minutes, facts=facts | {"priors": digest(priors.identity)})
    log = TrainingLog(args.out / LOGS, priors, recipe, device, shown=team.leads)

    def on_validation(news: dict[str, Any], now: Any) -> None:
        log.validation(news, now)
        if news.get("best") and team.leads:
            now.record = _record(args, recipe, now, priors) | {"validation": news}
            save_head(now, args.out / BEST)

    readers = default_readers(device) if args.readers is None else args.readers
    with log:
        history = train(
            head, priors, recipe, device=device, team=team, keeping=keeping, readers=readers, on_step=log.step,
            on_validation=on_validation,
        )  # fmt: skip
    head.record = _record(args, recipe, head, priors) | {
        "validations": history.validations,
        "best": history.best,
        "steps": history.steps,
        "objects": history.objects,
        "failed_samples": history.failed,
        "seconds": {"total": round(time.perf_counter() - start, 2), "training": round(history.seconds, 2)},
        "objects_per_s": round(history.objects / max(1e-9, history.seconds), 1),
        "data_wait_share": round(history.waiting / max(1e-9, history.seconds), 4),
    }
    if team.leads:
        save_head(head, args.out)
        state.unlink(missing_ok=True)
    return head.record


def prepare(args: TrainHead, device: str, *, of_team: bool = False) -> tuple[Any, Any, Any]:
    """The cache, an untrained head for it, the recipe. PipelineError: whatever is wrong with the arguments."""
    from cache.priors import Priors
    from pipeline.head_options import build
    from stages.train_head.trainer import trainable

    memory = int(args.memory_gb * 2**30)
    priors = Priors.open(args.cache, images_dir=args.images, need_images=False, memory_bytes=memory)
    trainable(priors)
    head, recipe = build(args, priors, device)
    head.priors = priors.identity
    if head.refined_size is not None and priors.images is None:
        Priors.open(args.cache, images_dir=args.images)  # raises: it says where they were looked for
    if not of_team:
        prepare_out(args.out, "head", _is_ours)
    return priors, head, recipe


def _forget(out: Path) -> None:
    """Delete what another training left in --out and this one might not write again."""
    import shutil

    from stages.train_head.state import STATE_FILE

    for name in (STATE_FILE, f"{STATE_FILE}.partial"):
        (out / name).unlink(missing_ok=True)
    for name in (BEST, LOGS):
        shutil.rmtree(out / name, ignore_errors=True)


def _is_ours(out: Path) -> bool:
    """Is this the folder of a head, or what a killed training left of one?"""
    from stages.train_head.heads.checkpoint import is_head
    from stages.train_head.state import STATE_FILE

    found = {path.name.removesuffix(".partial") for path in out.iterdir()}
    begun = bool(found & {STATE_FILE, BEST, LOGS}) and found <= {STATE_FILE, BEST, LOGS, *HEAD_FILES}
    return is_head(out) or begun


def _record(args: TrainHead, recipe: Any, head: Any, priors: Any) -> dict[str, Any]:
    return {
        "command": "train-head",
        "head": args.head,
        "recipe": asdict(recipe),
        "workers": args.workers,
        "parameters": sum(p.numel() for p in head.parameters()),
        "cache": args.cache,
        "lmm": priors.store.meta.soft.get("lmm", "unknown"),
        "data": looked_at(priors),
        "prompts": priors.samples.labels("prompt")[:5],
        **({"init_from": args.init_from} if args.init_from else {}),
        **({"provenance": head.record["provenance"]} if "provenance" in head.record else {}),
        **bytes_read(priors, head),
    }


def looked_at(priors: Any) -> list[dict[str, Any]]:
    """What training and validation choose from: of each dataset, split and task its samples and objects."""
    names, objects, rows = ("dataset", "split", "task"), priors.rows.numbers("objects"), []
    searched = priors.samples.searched()
    for values in itertools.product(*(priors.samples.labels(name) for name in names)):
        labels = dict(zip(names, values, strict=True))
        found = priors.samples.where(**{name: [value] for name, value in labels.items()})
        chosen = [index for index in found if not searched[index]]
        if chosen and (labels["split"] == "train" or (labels["split"], labels["task"]) == ("val", "referring")):
            failed = sum(index in priors.failures for index in chosen)
            rows.append(labels | {"samples": len(chosen), "objects": int(objects[chosen].sum()), "failed": failed})
    return rows


def summary(args: TrainHead, record: dict[str, Any]) -> str:
    """What the command says in the end."""
    failed = record["failed_samples"]
    best = record["best"]
    scores = ""
    if best is not None:
        last = record["validations"][-1]
        names = [name for name in last if name.startswith("val_ciou_")]
        scores = ", ".join(f"{name} {last[name]:.3f}" for name in names)
        scores = f"validation at the end: {scores}; best at step {best['step']}: {args.out / BEST}\n"
    return (
        f"{scores}train-head: {record['parameters']:,} parameters, {record['steps']} steps, {record['objects_per_s']} "
        f"objects/s, waited for data {100 * record['data_wait_share']:.1f} % of {record['seconds']['training']:.1f} s; "
        f"cache: {shown_bytes(record)}; failed samples: {failed['train']} training (left out), "
        f"{failed['val']} validation (misses); {record['seconds']['total']:.1f} s; head: {args.out}"
    )


def prepare_out(out: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Makes the folder and writes there once, before the work; PipelineError if it holds other things than `what`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in out.iterdir())
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise PipelineError(f"--out {out} can not be written ({error.strerror}); choose another folder") from None
    if found and not is_ours(out):
        raise PipelineError(
            f"--out {out} is not empty and holds no {what} of this program (but {', '.join(found[:3])}); "
            "choose another folder, or empty it yourself"
        )


def bytes_read(priors: Any, head: Any) -> dict[str, float]:
    """What the cache's arrays take on disk, padding included: per object, and per image if the head looks at those."""
    found = {"bytes_per_object": round(sum(priors.store.stored_bytes().values()) / max(1, priors.objects()), 1)}
    if head.refined_size is not None:
        images = sum(priors.images.stored_bytes().values())
        found["bytes_per_image"] = round(images / max(1, len(priors.image_rows)), 1)
    return found


def shown_bytes(found: dict[str, Any]) -> str:
    """`bytes_read` as extract prints it."""
    per_image = f" (+ {found['bytes_per_image']:,.0f} per image)" if "bytes_per_image" in found else ""
    return f"{found['bytes_per_object']:,.0f} bytes/object{per_image}"


def default_readers(device: str) -> int:
    """Reading threads: one where the optimiser needs the cores itself, some on a GPU's host."""
    import os

    return max(1, min(4, (os.cpu_count() or 1) // 4)) if device.startswith("cuda") else 1


def choose_device(name: str) -> str:
    """cuda or cpu; raises PipelineError for cuda where there is none."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise PipelineError(f"--device {name}: give cuda, cpu or auto (which GPU: CUDA_VISIBLE_DEVICES)")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise PipelineError(f"--device {name}: torch sees no GPU here")
    return name
