"""Train the embedded tiny SAM from scratch: segment_anything's modules, class-agnostic, prompted by boxes and masks.

    python -m stages.extract.tiny.train_sam --out stages/extract/tiny/sam

It sees scenes of the seed range `pretrain`, one visible segment (or the union of two) at a time, prompted by a jittered
box, a blurred and corrupted mask, or both. It never sees text. `training.json` beside the weights is the record.
"""

from __future__ import annotations

import json
import platform
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from segment_anything.modeling import Sam
from torch.utils.data import DataLoader, IterableDataset

from manifests.scenes.world import make_scene
from manifests.scenes.write import GENERATOR_VERSION
from stages.extract.checkpoint import file_sha256
from stages.extract.sam import SAM_PRESETS, build_sam, preprocess_sam, save_sam

CONFIG = SAM_PRESETS["tiny"]
LOW = CONFIG.mask_size  # side of SAM's low-resolution masks
OBJECTS = 6  # per scene


@dataclass(kw_only=True, slots=True)
class Config:
    """How the tiny SAM is trained."""

    out: Path
    """Folder for weights, config and record."""
    steps: int = 3000
    """Optimiser steps."""
    batch: int = 8
    """Scenes a step; every scene brings six objects."""
    lr: float = 1e-3
    """Peak learning rate: warm-up over 100 steps, constant, linear to zero over the last 40 %."""
    seed: int = 0
    threads: int = 1
    """CPU threads of the optimiser process; a second process renders scenes."""
    save_every: int = 500
    """Steps between saves of the weights."""


def segments(index: int, split: str) -> tuple[Image.Image, list[np.ndarray]]:
    """Scene `index` and OBJECTS masks of it, bool [height, width]: segments, now and then a union of two things."""
    scene = make_scene(split, index)
    rng = random.Random(index + 11)
    things = [scene.thing_mask(i) for i in range(len(scene.things))]
    stuff = [m for k in range(len(scene.stuff)) if (m := scene.stuff_mask(k)).any()]
    masks = things + stuff
    if rng.random() < 0.4 and len(things) > 2:
        a, b = rng.sample(range(len(things)), 2)
        masks.append(things[a] | things[b])
    rng.shuffle(masks)
    masks = (masks * OBJECTS)[:OBJECTS]
    return Image.fromarray(scene.image), masks


def coarse_logits(mask: torch.Tensor, others: torch.Tensor, valid: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A mask prompt such as a coarse decoder would give: blurred, shifted, noisy, leaking into another object.

    mask, others: float [LOW, LOW] (truth; a distractor); valid: float [LOW, LOW]. Returns logits float [LOW, LOW].
    """
    soft = mask + (rng.uniform(0, 0.6) * others if rng.random() < 0.4 else 0)
    soft = F.avg_pool2d(soft[None, None], rng.choice((3, 5, 7, 9)), 1, 0) if rng.random() < 0.9 else soft[None, None]
    cells = rng.choice((10, 12, 16, 32))
    soft = F.interpolate(soft, size=(cells, cells), mode="area") + 0.12 * rng.random() * torch.randn(1, 1, cells, cells)
    soft = F.interpolate(soft, size=(LOW, LOW), mode="bilinear")[0, 0]
    soft = torch.roll(soft, (rng.randint(-2, 2), rng.randint(-2, 2)), (0, 1))
    logits = rng.uniform(4, 16) * (soft - rng.uniform(0.3, 0.55))
    outside = min(-1.0, float(logits.min()))  # the refiner pads the same way
    return torch.where(valid > 0, logits, torch.tensor(outside))


def jittered_box(mask: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """xyxy in SAM's input pixels around a mask [LOW, LOW], each side moved by up to 12 % of the box."""
    rows, cols = torch.nonzero(mask.amax(1))[:, 0], torch.nonzero(mask.amax(0))[:, 0]
    if not len(rows):
        return torch.tensor([0.0, 0.0, CONFIG.image_size, CONFIG.image_size])
    scale = CONFIG.image_size / LOW
    box = torch.tensor([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], dtype=torch.float32) * scale
    sides = torch.tensor([box[2] - box[0], box[3] - box[1]] * 2)
    return box + sides * torch.tensor([rng.uniform(-0.12, 0.12) for _ in range(4)])


class PromptedSegments(IterableDataset):
    """Endless stream of (image [3, S, S], truth [O, LOW, LOW], valid [LOW, LOW], boxes [O, 4], masks [O, LOW, LOW])."""

    def __init__(self, first: int = 0, split: str = "pretrain"):
        self.first, self.split = first, split

    def __iter__(self):
        index = self.first
        while True:
            rng = random.Random(index + 13)
            torch.manual_seed(index)
            image, masks = segments(index, self.split)
            pixels, box = preprocess_sam(image, CONFIG.image_size)
            inner = box.scaled(LOW)
            truth = torch.zeros(OBJECTS, LOW, LOW)
            stacked = torch.from_numpy(np.stack(masks)).float()
            truth[:, : inner.height, : inner.width] = F.interpolate(
                stacked[None], size=(inner.height, inner.width), mode="area"
            )[0]
            valid = torch.zeros(LOW, LOW)
            valid[: inner.height, : inner.width] = 1
            prompts = [coarse_logits(t, truth[rng.randrange(OBJECTS)], valid, rng) for t in truth]
            boxes = [jittered_box(t > 0.5, rng) for t in truth]
            yield pixels, truth, valid, torch.stack(boxes), torch.stack(prompts)
            index += 1


def forward(sam: Sam, batch: list[torch.Tensor], kinds: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Low-resolution logits [B, O, LOW, LOW] and predicted IoU [B, O]; `kinds` says how each image is prompted."""
    pixels, _, _, boxes, prompts = batch
    embeddings = sam.image_encoder(pixels)
    logits, quality = [], []
    for b, kind in enumerate(kinds):
        sparse, dense = sam.prompt_encoder(
            points=None,
            boxes=boxes[b] if "box" in kind else None,
            masks=prompts[b][:, None] if "mask" in kind else None,
        )
        low, iou = sam.mask_decoder(
            image_embeddings=embeddings[b : b + 1],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.expand(OBJECTS, -1, -1, -1),
            multimask_output=False,
        )
        logits.append(low[:, 0])
        quality.append(iou[:, 0])
    return torch.stack(logits), torch.stack(quality)


def loss_of(
    logits: torch.Tensor, quality: torch.Tensor, batch: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """BCE + DICE over the image's part, plus the error of the predicted IoU. Returns (loss, mean IoU)."""
    truth, valid = batch[1], batch[2][:, None]
    area = valid.sum((-1, -2))
    bce = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid).sum((-1, -2)) / area
    p = logits.sigmoid() * valid
    dice = 1 - (2 * (p * truth).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + truth.sum((-1, -2)) + 1)
    with torch.no_grad():
        a, b = (logits > 0) & (valid > 0), truth > 0.5
        iou = (a & b).sum((-1, -2)) / (a | b).sum((-1, -2)).clamp_min(1)
    return (bce + dice).mean() + 0.1 * F.mse_loss(quality, iou.float()), iou.float().mean()


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    rng = random.Random(config.seed)
    sam = build_sam(CONFIG)
    loader = iter(DataLoader(PromptedSegments(), config.batch, num_workers=1))
    held_out = next(iter(DataLoader(PromptedSegments(split="val"), 48)))
    optimizer = torch.optim.AdamW(sam.parameters(), config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100, (config.steps - s) / (0.4 * config.steps))
    )
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "stages.extract.tiny.train_sam", *sys.argv[1:]]),
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "generator_version": GENERATOR_VERSION,
        "parameters": sum(p.numel() for p in sam.parameters()),
        "objective": "BCE + DICE of class-agnostic masks, prompted by boxes and corrupted masks; no text",
        "scenes": f"split pretrain, indices 0 to {config.steps * config.batch - 1}",
        "hardware": f"{platform.machine()} CPU, {config.threads} thread(s), torch {torch.__version__}",
        "held_out_miou": [],
    }
    start, running, mean_loss = time.time(), 0.0, 0.0
    for step in range(config.steps):
        batch = next(loader)
        kinds = [rng.choice(("box", "mask", "box+mask", "box+mask")) for _ in range(config.batch)]
        loss, iou = loss_of(*forward(sam, batch, kinds), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = 0.98 * running + 0.02 * iou.item() if step else iou.item()
        mean_loss = 0.98 * mean_loss + 0.02 * loss.item() if step else loss.item()
        last = step == config.steps - 1
        if step % 50 == 0 or last:
            print(f"step {step:5d}  IoU {running:.3f}  {(time.time() - start) / (step + 1):.2f} s/step", flush=True)
        if (step + 1) % config.save_every == 0 or last:
            with torch.no_grad():
                held = {
                    kind: round(loss_of(*forward(sam, held_out, [kind] * 48), held_out)[1].item(), 4)
                    for kind in ("box", "mask", "box+mask")
                }
            print(f"step {step:5d}  held-out mIoU {held}", flush=True)
            record["held_out_miou"].append({"step": step + 1, "train_loss": round(mean_loss, 4), **held})
            record["minutes"] = round((time.time() - start) / 60, 1)
            save_sam(sam, CONFIG, config.out)
            record["sha256"] = file_sha256(config.out / "model.safetensors")
            (config.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
