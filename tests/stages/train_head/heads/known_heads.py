"""A small head with all that is known of one before it is published: priors, record, evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache.identity import plain
from stages.evaluate.evaluation import Evaluation, metrics
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead
from tests.stages.evaluate.made_up import keywords, png, res
from tests.stages.train_head.heads.batches import SAM, SHAPE

PRIORS = {
    "algorithm": 3,
    "merge": "mean",
    "lmm": {"dtype": "bfloat16", "template": "USER: <image>\n{prompt} ASSISTANT:", "layers": 3,
            "files": {"model.safetensors": "8b7c" * 16, "config.json": "e2f3" * 16}},
    "images": {"identity": {"sam": {"name": "vit_l", "weights": "3ea1" * 16}}, "rows": "361f" * 16},
}  # fmt: skip
RECORD = {
    "command": "train-head",
    "head": "unet-sam",
    "lmm": "llava-hf/llava-1.5-7b-hf",
    "prompts": ["Describe | it."],
    "recipe": {"epochs": 2, "lr": 0.001},
    "steps": 6,
    "workers": 1,
    "data": [
        {"dataset": "refcoco", "split": "train", "task": "referring", "samples": 10, "objects": 31, "failed": 1},
        {"dataset": "refcoco", "split": "val", "task": "referring", "samples": 4, "objects": 13, "failed": 0},
    ],
    "validations": [{"step": 0, "epoch": 0, "val_ciou_refined": 0.119}, {"step": 6, "epoch": 2, "loss": 3.1,
                                                                      "val_ciou_refined": 0.35}],
}  # fmt: skip


def make_head(seed: int = 0, input_size: int = 16) -> GroundingHead:
    """Random weights, the record and the priors from above."""
    torch.manual_seed(seed)
    head = GroundingHead(SHAPE, GroundingConfig(input_size=input_size, base_width=4, sam=SAM)).eval()
    head.priors, head.record = plain(PRIORS), plain(RECORD)
    return head


def make_evaluation(weights: str | None = None) -> dict[str, Any]:
    """metrics.json of some made-up results, written by the stage's own code. `weights`: the head's digest."""
    measures = [*res(dataset="refcoco", split="testA"), *png(dataset="png"), *keywords()]
    evaluation = Evaluation(
        run={"samples": 7, "weights": weights, "lam": 0.3, "identity": PRIORS},
        measures=[replace(each, items=5, failed=1) if each.dataset == "refcoco" else each for each in measures],
        failures={"image 5": "truncated"},
    )
    return plain(metrics(evaluation))


def files_of(folder: Path) -> dict[str, bytes]:
    """File name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
