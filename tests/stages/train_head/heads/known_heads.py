"""A small head with all that is known of one before it is published: priors, record, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cache.identity import plain
from stages.evaluate.keywords import WordResult, summarise_chooser, summarise_keywords
from stages.evaluate.png import summarise_png
from stages.evaluate.report import Evaluation, metrics
from stages.evaluate.res import summarise_res
from stages.evaluate.results import ObjectResult
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead
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
    words = ("a", "red", "square", "here")
    truth = torch.tensor([-1, 0, 0, -1]).numpy()
    results = [_result(f"image {k}", intersection=5 + k, union=20 + k, plural=k == 3) for k in range(4)]
    missed = [ObjectResult.missed(**_of("image 5"), area=7)]
    texts = [
        WordResult(
            sample_id=str(k), dataset="png", split="val", image_id=str(k), words=words, truth=truth,
            scores=torch.tensor([0.1, 0.2 + k, 0.9, 0.4]).numpy(),
        )
        for k in range(2)
    ]  # fmt: skip
    keywords = [summarise_keywords(texts, 0.3), summarise_chooser(texts, "lexicon", lambda _: truth)]
    return plain(
        metrics(
            Evaluation(
                run={"samples": 7, "weights": weights, "identity": PRIORS},
                res=[*summarise_res(results + missed), *summarise_res(results + missed, "coarse")],
                png=summarise_png([*results, *missed]),
                keywords=[row for row in keywords if row is not None],
                failures={"image 5": "truncated"},
            )
        )
    )


def _result(image: str, *, intersection: int, union: int, plural: bool) -> ObjectResult:
    return ObjectResult(
        **_of(image) | {"plural": plural}, area=12, intersection=intersection, union=union,
        coarse_intersection=intersection - 3, coarse_union=union,
    )  # fmt: skip


def _of(image: str) -> dict[str, Any]:
    return {
        "sample_id": image, "dataset": "refcoco", "split": "testA", "image_id": image, "phrase": "it",
        "is_thing": True, "plural": False,
    }  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """File name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
