"""LLaVA checkpoints of random weights: the control of the embedded LMM, and a model of published size."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from stages.extract.presets import TINY


def random_llava(out: Path, config: LlavaConfig | None = None, image_processor: dict[str, Any] | None = None) -> Path:
    """A folder in `out` with a LLaVA of random weights (seed 0) and the embedded LMM's tokenizer.

    config: its architecture, default the embedded LMM's; weights are made in `config.dtype`. image_processor: settings
    that differ from the embedded LMM's. The folder's name is a digest of all its other files, and it appears whole or
    not at all: trained weights are never in it.
    """
    files = {p.name: p.read_bytes() for p in sorted((TINY / "lmm").glob("*.json")) if p.name != "training.json"}
    if config is not None:
        files["config.json"] = config.to_json_string().encode()
    if image_processor:
        processor = json.loads(files["processor_config.json"])
        processor["image_processor"] |= image_processor
        files["processor_config.json"] = json.dumps(processor).encode()
    digests = "".join(hashlib.sha256(content).hexdigest() for content in files.values())
    folder = out / f"random_lmm-{hashlib.sha256(digests.encode()).hexdigest()[:8]}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        made = Path(scratch) / "lmm"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        torch.manual_seed(0)
        config = LlavaConfig.from_pretrained(made)
        model: Any = AutoModelForImageTextToText
        model.from_config(config, dtype=config.dtype or torch.float32).save_pretrained(made)
        made.rename(folder)
    return folder
