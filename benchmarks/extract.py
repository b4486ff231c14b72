"""What does capturing cost? Plain SDPA forward : the same with capture : eager attention with all its outputs.

    python -m benchmarks.extract                                       8 layers, d 1024, float32: 10 minutes on 2 cores
    python -m benchmarks.extract --quick                               fewer repeats of a batch of one: 2 minutes
    python -m benchmarks.extract --device cuda --config llava-1.5-7b   full size, bfloat16: 80 GB GPU, 20 GB of disk

Time: paired ratios of forwards that take turns in one process. Memory: peak of one forward minus the loaded model, the
median of three fresh processes each. Then the extraction itself (`benchmarks.throughput`): samples per second, peak
memory, and the share of the time in which neither of the two models has work. Weights are random.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

import torch
import tyro
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from benchmarks.full_size import llava_config
from benchmarks.ratios import ratio
from benchmarks.throughput import throughput
from pipeline.extract import IN_FLIGHT
from stages.extract.attention import WordRows
from stages.extract.capture import AttentionCapture

MODES: Final = ("plain", "capture", "eager")
TEXT: Final = (40, 60)  # tokens before and after the image's
OBJECTS, WORDS = 4, 4  # of a sample, tokens of each
PROCESSES: Final = 3  # that measure the memory of a mode; their median counts


@dataclass(kw_only=True, slots=True)
class Config:
    """What is measured."""

    config: Literal["mid", "llava-1.5-7b"] = "mid"
    """mid: 8 layers, 16 heads, d 1024, 576 image tokens."""
    device: str = "cpu"
    """cpu or cuda."""
    batch: int = 4
    repeats: int = 20
    samples: int | None = None
    """Of the extraction; default 16 on the CPU, 192 on a GPU; 0: leave it out."""
    in_flight: int | None = None
    """Units that the extraction's worker has at a time; default as the command: 1 on the CPU, 3 on a GPU."""
    out: Path = Path("runs/benchmarks/extract")
    """Random checkpoints and caches of the extraction."""
    quick: bool = False
    """3 repeats of a batch of one, 4 samples; no claim."""

    def __post_init__(self) -> None:
        if self.quick:
            self.batch, self.repeats, self.samples = 1, 3, 4
        if self.samples is None:
            self.samples = 16 if self.device == "cpu" else 192
        self.in_flight = self.in_flight or (1 if self.device == "cpu" else IN_FLIGHT)


def mid_config() -> Any:
    """A decoder of 8 layers that is large beside its vision tower, so that what capturing costs is not hidden."""
    text = LlamaConfig(
        vocab_size=2048, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=336,
        patch_size=14, projection_dim=256,
    )  # fmt: skip
    return LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=3, image_seq_length=576, dtype="float32"
    )


def config_of(name: str) -> Any:
    """A LlavaConfig."""
    return mid_config() if name == "mid" else llava_config(32)


def forward_of(mode: str, config: Config) -> tuple[Callable[[], Any], torch.nn.Module]:
    """One forward pass as `mode` runs it (without logits), and the model. Weights and inputs are of seed 0."""
    architecture = config_of(config.config)
    torch.manual_seed(0)
    auto: Any = AutoModelForImageTextToText
    with torch.device(config.device):
        model = auto.from_config(
            architecture, dtype=architecture.dtype, attn_implementation="eager" if mode == "eager" else "sdpa"
        )
    model.eval().requires_grad_(False)
    inputs, rows = _inputs(architecture, config)
    if mode == "capture":
        capture = AttentionCapture(model)
        return lambda: capture.run(inputs, rows), model
    outputs = {"output_attentions": True, "output_hidden_states": True} if mode == "eager" else {}
    return lambda: model.model(**inputs, use_cache=False, **outputs), model


def _inputs(architecture: Any, config: Config) -> tuple[dict[str, torch.Tensor], list[WordRows]]:
    before, after = TEXT
    image = architecture.image_seq_length
    ids = torch.randint(10, 600, (config.batch, before + image + after))
    ids[:, before : before + image] = architecture.image_token_index
    start = before + image
    words = [range(start + WORDS * k, start + WORDS * (k + 1)) for k in range(OBJECTS)]
    row = WordRows(objects=words, columns=range(before, start), answer=range(start, start + after))
    side = architecture.vision_config.image_size
    pixels = torch.randn(config.batch, 3, side, side).to(architecture.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(config.device) for name, value in inputs.items()}, [row] * config.batch


@torch.no_grad()
def paired_seconds(config: Config) -> dict[str, list[float]]:
    """Seconds of every mode in every repeat; the modes take turns."""
    runs = {mode: forward_of(mode, config)[0] for mode in MODES}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(1 + config.repeats):  # the first one warms up
        for mode in MODES if repeat % 2 else MODES[::-1]:
            start = time.perf_counter()
            result = runs[mode]()
            if config.device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                seconds[mode].append(time.perf_counter() - start)
            del result
    return seconds


@torch.no_grad()
def peak_bytes(mode: str, config: Config) -> int:
    """Most memory of one forward pass, above the loaded model; in a process of its own."""
    run, model = forward_of(mode, config)
    gc.collect()
    if config.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - loaded
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = _status("VmRSS")
    run()
    del model
    return _status("VmHWM") - loaded


def _status(name: str) -> int:
    """A value of /proc/self/status, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def main(config: Config) -> dict[str, Any]:
    # glibc gives large blocks back at once: what is resident is what is in use
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {mode: [pool.submit(peak_bytes, mode, config).result() for _ in range(PROCESSES)] for mode in MODES}
    memory = {mode: median(values) for mode, values in peaks.items()}
    seconds = paired_seconds(config)
    gc.collect()
    name = torch.cuda.get_device_name() if config.device != "cpu" else f"{platform.processor() or platform.machine()}"
    result: dict[str, Any] = {
        "capture_over_plain_time": ratio(seconds["capture"], seconds["plain"]),
        "capture_over_plain_memory": round(memory["capture"] / memory["plain"], 3),
        "eager_over_capture_time": ratio(seconds["eager"], seconds["capture"]),
        "eager_over_capture_memory": round(memory["eager"] / memory["capture"], 3),
        "forward_seconds": {mode: round(median(values), 4) for mode, values in seconds.items()},
        "forward_mib": {mode: round(value / 2**20, 1) for mode, value in memory.items()},
        "config": config.config,
        "batch": config.batch,
        "tokens": sum(TEXT) + 576,
        "dtype": str(config_of(config.config).dtype).removeprefix("torch."),
        "device": f"{name}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "quality_claim": not config.quick,
    }
    if config.samples:
        result |= throughput(config_of(config.config), config.device, config.samples, config.in_flight or 1, config.out)
    for key, value in result.items():
        print(f"{key:>26}  {value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
