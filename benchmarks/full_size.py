"""Does the pipeline run at full size? All three commands with LLaVA-1.5-7B and SAM ViT-L of random weights.

    python -m benchmarks.full_size            19 GiB of memory, 17 GB of disk, a quarter of an hour on 2 cores
    python -m benchmarks.full_size --quick    two of LLaVA's 32 layers and SAM ViT-B: minutes, 4 GB

Sizes, dtypes, shapes, memory and the head of the paper are those of the real models; the weights are random and the
tokenizer is the embedded LMM's, so the masks mean nothing.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import tyro
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from benchmarks.random_weights import random_llava
from cache.priors import Priors
from pipeline.cli import main as run_pipeline
from stages.extract.presets import PRESETS
from stages.extract.sam import SAM_PRESETS, build_sam

LLAVA: Final = PRESETS["llava"]
assert LLAVA.square is not None
SQUARE: Final = LLAVA.square


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    out: Path = Path("runs/full_size")
    """Weights, cache, head and results; weights that are there are used again."""
    limit: int = 1
    """Samples per dataset and split."""
    device: str = "auto"
    """cuda, cpu or auto."""
    quick: bool = False
    """Few layers."""


def llava_config(layers: int) -> LlavaConfig:
    """LLaVA-1.5-7B's sizes (llava-hf/llava-1.5-7b-hf, config.json) with the embedded tokenizer's special ids."""
    text = LlamaConfig(
        vocab_size=32064, hidden_size=LLAVA.width, intermediate_size=11008, num_hidden_layers=layers,
        num_attention_heads=LLAVA.heads, max_position_embeddings=4096, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=SQUARE.image_size, patch_size=SQUARE.patch, projection_dim=768,
    )  # fmt: skip
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=3, image_seq_length=576, dtype=LLAVA.dtype
    )


def random_sam(path: Path, name: str) -> Path:
    """A checkpoint file as the official ones are, of random weights (seed 0)."""
    if not path.exists():
        torch.manual_seed(0)
        torch.save(build_sam(SAM_PRESETS[name]).state_dict(), path)
    return path


def command(*args: str) -> None:
    if code := run_pipeline(list(args)):
        raise SystemExit(code)


def main(config: Config) -> dict[str, Any]:
    layers, sam = (2, "vit_b") if config.quick else (LLAVA.layers, LLAVA.sam)
    config.out.mkdir(parents=True, exist_ok=True)
    size = {"height": SQUARE.image_size, "width": SQUARE.image_size}
    images: dict[str, Any] = {"crop_size": size, "size": {"shortest_edge": SQUARE.image_size}}
    images |= {"image_mean": list(SQUARE.mean), "image_std": list(SQUARE.std)}
    lmm = random_llava(config.out, llava_config(layers), images)
    sam_file = str(random_sam(config.out / f"{sam}.pth", sam))
    cache, head, evaluation = (str(config.out / f"{name}_{layers}") for name in ("cache", "head", "evaluation"))
    common = ["--device", config.device]
    command(
        "extract", "--lmm", str(lmm), "--dtype", LLAVA.dtype, "--sam", sam, "--sam-checkpoint", sam_file, "--cache",
        cache, "--splits", "train", "testA", "val", "--limit", str(config.limit), "--local", *common,
    )  # fmt: skip
    command(
        "train-head", "--cache", cache, "--out", head, "--preset", "paper", "--epochs", "1", "--sam-checkpoint",
        sam_file, *common,
    )  # fmt: skip
    command("evaluate", "--cache", cache, "--head", head, "--out", evaluation, *common)
    priors = Priors.open(cache)
    items = [item for index in range(len(priors.samples)) if (item := priors.read(index)) is not None]
    extracted = json.loads(Path(f"{cache}.extract.json").read_text())
    trained = json.loads((Path(head) / "training.json").read_text())
    result = {
        "lmm": {"layers": layers, "heads": LLAVA.heads, "width": LLAVA.width, "dtype": LLAVA.dtype},
        "sam": sam,
        "samples": len(items),
        "objects": sum(len(item.attention) for item in items),
        "attention_shape": list(items[0].attention.shape[1:]),
        "hidden_shape": list(items[0].hidden.shape[1:]),
        "extract_seconds": extracted["seconds"],
        "head_parameters": trained["parameters"],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "quality_claim": False,
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
