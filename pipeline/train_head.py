"""`run_pipeline.py train-head`: train a grounding head from the cache alone."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from manifests.errors import PipelineError


@dataclass(kw_only=True, slots=True)
class TrainHead:
    """Train mask decoder, mask refiner and keyword selector from a cache; neither the LMM nor an image is opened."""

    cache: str = "runs/cache"
    """A complete cache: a folder, s3://bucket/prefix, or an .h5 file that `cache export` made."""
    images: str | None = None
    """Its image cache, if it is no longer where extraction or the export put it."""
    out: Path = Path("runs/head")
    """Folder for the head: weights, config, training.json."""
    head: str = "unet-sam"
    """Which head to train."""
    preset: Literal["auto", "paper", "demo"] = "auto"
    """Sizes and recipe: paper's, or small ones for the embedded default; auto: demo for LMMs of under 128 maps."""
    refiner: bool = True
    """Refine the coarse masks with SAM."""
    prompt_mask: bool = True
    """Prompt SAM with the coarse mask."""
    prompt_box: bool = True
    """Prompt SAM with the coarse mask's box."""
    prompt_text: bool = True
    """Prompt SAM with the words' hidden states."""
    epochs: int | None = None
    """Passes over the training samples; default: the preset's."""
    lr: float | None = None
    """Peak learning rate; default: the preset's."""
    batch_size: int = 8
    """Samples of a step."""
    seed: int = 0
    device: str = "auto"
    """cuda, cpu or auto."""
    memory_gb: float = 2.0
    """RAM for samples that stay decoded between epochs."""
    sam_checkpoint: Path | None = None
    """SAM's weights that the refiner starts from; default as in extract."""


def run(args: TrainHead) -> None:
    """Train, save, print the scores of the epochs and what it cost."""
    from tqdm import tqdm

    from cache.priors import Priors
    from stages.train_head.heads.base import is_head
    from stages.train_head.trainer import train, trainable

    start = time.perf_counter()
    priors = Priors.open(
        args.cache, images_dir=args.images, need_images=args.refiner, memory_bytes=int(args.memory_gb * 2**30)
    )
    trainable(priors)
    device = choose_device(args.device)
    head, recipe = build(args, priors)
    prepare_out(args.out, "head", is_head)
    bar = tqdm(desc="train", unit="step")

    def on_step(news: dict[str, Any]) -> None:
        if "validation" in news:
            record = news["validation"]
            tqdm.write("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
            return
        bar.total = news["steps"]
        counted["objects"] += news["objects"]
        bar.set_postfix_str(f"loss {news['loss']:.3f}, {counted['objects'] / bar.format_dict['elapsed']:.0f} objects/s")
        bar.update()

    counted = {"objects": 0}
    history = train(head, priors, recipe, device=device, on_step=on_step)
    bar.close()
    path = args.out / "training.json"
    path.unlink(missing_ok=True)  # new weights never lie beside the identity of older ones
    head.save(args.out)
    record = {
        "command": "train-head",
        "head": args.head,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in head.parameters()),
        "cache": args.cache,
        "cache_identity": priors.identity,
        "epochs": history.epochs,
        "steps": history.steps,
        "objects": history.objects,
        "failed_samples": history.failed,
        **bytes_read(priors, head),
        "seconds": {"total": round(time.perf_counter() - start, 2), "training": round(history.seconds, 2)},
        "objects_per_s": round(history.objects / max(1e-9, history.seconds), 1),
        "data_wait_share": round(history.waiting / max(1e-9, history.seconds), 4),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"train-head: {record['parameters']:,} parameters, {history.steps} steps, {record['objects_per_s']} objects/s, "
        f"waited for data {100 * record['data_wait_share']:.1f} % of {history.seconds:.1f} s; "
        f"cache: {shown_bytes(record)}; failed samples: {history.failed['train']} training (left out), "
        f"{history.failed['val']} validation (misses); {record['seconds']['total']:.1f} s; head: {args.out}"
    )


def build(args: TrainHead, priors: Any) -> tuple[Any, Any]:
    """An untrained head that fits the cache, its refiner started from SAM, and the recipe."""
    import torch

    from stages.extract.sam import SamConfig, load_sam
    from stages.train_head.heads import HEADS
    from stages.train_head.heads.base import PriorShape
    from stages.train_head.heads.grounding_head import PRESETS, GroundingHead
    from stages.train_head.trainer import RECIPES

    if args.head not in HEADS:
        raise PipelineError(f"--head {args.head}: known are {', '.join(HEADS)}")
    preset = args.preset if args.preset != "auto" else ("demo" if _lmm_maps(priors) < 128 else "paper")
    try:
        recipe = replace(RECIPES[preset], batch_size=args.batch_size, seed=args.seed)
        given: dict[str, Any] = {"epochs": args.epochs, "lr": args.lr}
        recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
        sam = priors.identity["images"]["identity"]["sam"]
        sizes = SamConfig.from_dict({k: v for k, v in sam.items() if k not in ("weights", "dtype", "name")})
        config = replace(
            PRESETS[preset],
            refiner=args.refiner,
            prompt_mask=args.prompt_mask,
            prompt_box=args.prompt_box,
            prompt_text=args.prompt_text,
            sam=sizes,
        )
    except ValueError as error:
        raise PipelineError(f"train-head: {error}") from None
    torch.manual_seed(args.seed)
    shape = PriorShape(channels=priors.channels, layers=priors.layers, width=priors.width)
    head = GroundingHead(shape, config)
    if args.refiner:
        head.start_from(load_sam(sam["name"], args.sam_checkpoint))
    return head, recipe


def _lmm_maps(priors: Any) -> int:
    """Attention maps per object that the LMM gave; a pruned cache has fewer."""
    lmm = priors.identity["lmm"]
    return lmm.get("views", 1) * lmm.get("attention_layers", lmm["layers"]) * lmm["heads"]


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


def choose_device(name: str) -> str:
    """cuda or cpu; raises PipelineError for cuda where there is none."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise PipelineError(f"--device {name}: torch sees no GPU here")
    return name
