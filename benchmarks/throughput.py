"""How fast is an extraction, and how much of its time does neither of the two models run? For `benchmarks.extract`.

Photos of 640 x 480 pixels with four phrases each, through the planner and the worker as `extract --local` runs them.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size import random_sam
from benchmarks.random_weights import random_llava
from cache.places import place_of
from manifests.own import FILE, read_own
from pipeline.runtime import run_units
from stages.extract.presets import PRESETS, resolve_lmm
from stages.extract.stage import Extraction, close, work_left
from stages.extract.worker import ExtractionWorker

PHRASES: Final = ("the red ring left of the star", "the small square", "the grass", "a blue disc that is large")
SIZE: Final = (640, 480)
PARTS: Final = ("lmm", "sam", "scale", "read", "write")


def photos(root: Path, count: int) -> Path:
    """A folder of own data: JPEG files with the details of photographs, and boxes as masks."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        fine = random.normal(0, 12, (SIZE[1], SIZE[0], 3))
        image = Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))
        image.save(root / f"{number}.jpg", quality=90)
        box = [40, 40, 300, 40, 300, 200, 40, 200]
        pieces = [{"text": text, "mask": {"polygon": box}} for text in PHRASES]
        lines.append(json.dumps({"image": f"{number}.jpg", "pieces": pieces}))
    (root / FILE).write_text("\n".join(lines))
    return root


def throughput(config: Any, device: str, samples: int, in_flight: int, out: Path) -> dict[str, Any]:
    """samples_per_s, peak_gib and share_outside_models of an extraction of random weights; the models are loaded.

    config: a LlavaConfig.  in_flight: units that the worker has at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    full = config.text_config.num_hidden_layers == PRESETS["llava"].layers
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    lmm = resolve_lmm(str(random_llava(out, config, {"crop_size": size, "size": {"shortest_edge": size["height"]}})))
    sam = "vit_l" if full else "tiny"
    root = photos(out / f"photos_{samples}", samples)
    cache = out / "cache"
    place = place_of(cache)
    shutil.rmtree(cache, ignore_errors=True)
    gpus = int(device != "cpu")
    extraction = Extraction(
        samples=read_own(root), data_root=root, cache=place, images=place.at("images"), lmm=lmm,
        dtype=str(config.dtype).removeprefix("torch."), merge="mean", sam=sam,
        sam_checkpoint=random_sam(out / f"{sam}.pth", sam) if full else None, device=device, gpus=gpus, batch_size=8,
    )  # fmt: skip
    plan = extraction.plan()
    worker = ExtractionWorker(extraction.worker(torch.get_num_threads()))
    for kind in worker.kinds:  # loading is not what is measured
        worker.load(kind)
    if gpus:
        torch.cuda.reset_peak_memory_stats()
    with extraction.writing(plan) as (images, priors):
        start, units = time.perf_counter(), work_left(images, priors)
        run = run_units(lambda: worker, units, workers=1, local=True, gpus=gpus, threads=1, in_flight=in_flight)
        reports = list(run)
        wall = time.perf_counter() - start
        close(images, priors, plan)
    parts = {name: sum(r["seconds"].get(name, 0.0) for r in reports) for name in PARTS}
    written = sum(report["bytes"] for report in reports)
    shutil.rmtree(cache)
    peak = torch.cuda.max_memory_allocated() if gpus else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "samples_per_s": round(len(plan.rows) / wall, 3),
        "peak_gib": round(peak / 2**30, 2),
        "share_outside_models": round(1 - (parts["lmm"] + parts["sam"]) / wall, 4),
        "extraction_seconds": {"wall": round(wall, 2)} | {name: round(value, 2) for name, value in parts.items()},
        "extraction": f"{len(plan.rows)} samples, {plan.objects} objects, {written / 1e6:.0f} MB; SAM {sam}; "
        f"{in_flight} unit(s) in flight",
    }
