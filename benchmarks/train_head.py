"""How fast does a head train from the cache? Against the same steps from memory, and with the frozen LMM in the loop.

    python -m benchmarks.train_head                    LLaVA-1.5-7B's shapes, the paper's head: half an hour on 2 cores
    python -m benchmarks.train_head --quick            fewer maps, a small head: a minute or two, claims nothing
    python -m benchmarks.train_head --device cuda      the 7B in bfloat16 in the loop: 80 GB GPU

Three trainings take turns of some steps. cache: nothing is kept between them, every batch is read, checked, decoded.
memory: the same batches, ready. online: those too, after the frozen LMM with its captured attention and SAM's image
encoder have run on the step's images (reading and resizing the images is left out: what is gained is more).
On the CPU the LMM in the loop is of medium size (8 layers, d 1024) and the cache that it is compared with is of its
shapes. Weights, maps and states are random; masks are not.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
import tyro

from benchmarks.extract import Config as LMMConfig
from benchmarks.extract import forward_of
from benchmarks.ratios import ratio
from benchmarks.scale import Described, StandIn
from cache.plan import rows_bytes
from cache.priors import Priors
from cache.store import Store
from manifests.manifest import write_manifest
from pipeline.train_head import default_readers
from stages.extract.plan import make_plan, plan_images
from stages.extract.presets import PRESETS
from stages.extract.sam import SAM_PRESETS, build_sam, encode_images, normalise_sam
from stages.train_head.feed import Example
from stages.train_head.heads.base import Head, PriorShape
from stages.train_head.heads.grounding_head import GroundingHead
from stages.train_head.recipe import TrainConfig
from stages.train_head.trainer import Training

MARKS: Final = {"cache_over_memory": 0.9, "cache_over_online": 5.0}
LLAVA: Final = PRESETS["llava"]
MID: Final = replace(LLAVA, layers=8, heads=16, width=1024)  # benchmarks.extract's medium LMM
SMALL: Final = replace(LLAVA, layers=2, heads=8, width=256)


@dataclass(kw_only=True, slots=True)
class Config:
    """What is measured."""

    device: str = "cpu"
    """cpu or cuda."""
    steps: int | None = None
    """Of a turn, whose first batch nobody reads ahead; default 8 on the CPU, 40 on a GPU."""
    batch_size: int | None = None
    """Samples of a step, 3.3 objects each; default 1 on the CPU, 8 on a GPU."""
    readers: int | None = None
    """Threads that read the cache; default as train-head."""
    repeats: int = 20
    """Turns of each training from cache and memory."""
    online: int | None = None
    """Turns of the training with the LMM, of at most two steps on the CPU; default 3 there, `repeats` on a GPU."""
    out: Path = Path("runs/benchmarks/train_head")
    """Caches; made, filled and deleted."""
    quick: bool = False
    """Few maps, a small head, 3 repeats; no claim."""

    def __post_init__(self) -> None:
        gpu = self.device != "cpu"
        if self.quick:
            self.repeats, self.online, self.steps = 3, 1, 3
        self.steps = self.steps or (40 if gpu else 8)
        self.batch_size = self.batch_size or (8 if gpu else 1)
        self.online = self.online or (self.repeats if gpu else 3)


def made_cache(root: Path, lmm: Any, sam: str, samples: int) -> Priors:
    """A complete cache of so many samples of `train`, planned as an extraction is, filled with random values."""
    described = [s for s in Described(4 * samples + 40) if s.split == "train"][:samples]
    images = plan_images(described, root, SAM_PRESETS[sam], hashed=False)
    plan = make_plan(described, StandIn(), lmm, SAM_PRESETS[sam], images, batch_size=8)
    path = root.with_name(f"{root.name}.parquet")
    write_manifest(path, described, {})
    image_store = Store.create_or_resume(
        root / "images", kind="images", identity={"sam": sam}, soft={}, arrays=plan.image_arrays,
        units=plan.image_units, files={"rows.parquet": rows_bytes(plan.image_rows)},
    )  # fmt: skip
    store = Store.create_or_resume(
        root, kind="priors", identity={"lmm": lmm.name, "images": image_store.reference()}, soft={"images": "images"},
        arrays=plan.arrays, units=plan.units,
        files={"manifest.parquet": path.read_bytes(), "rows.parquet": rows_bytes(plan.rows)},
    )  # fmt: skip
    path.unlink()
    for each in (image_store, store):
        for unit in each.missing_units():
            random = np.random.default_rng(unit)
            arrays = {}
            for name, spec in each.meta.arrays.items():
                values = random.standard_normal(spec.unit_shape, np.float32)
                if name.startswith("attention"):
                    values = np.square(values)
                    values /= values.mean((-2, -1), keepdims=True) if name == "attention" else 1000
                arrays[name] = np.abs(values).astype(spec.dtype) if "scale" in name else values.astype(spec.dtype)
            each.write_unit(unit, arrays, {"failures": []})
        each.finish()
    return Priors.open(root, memory_bytes=0)


class FromMemory(Training):
    """The same steps; their batches were made before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        gpu = self.device.startswith("cuda")
        made = [self.feed[number] for number in range(self.per_epoch)]
        self.ready = [[each.pin_memory() if gpu else each for each in examples] for examples in made]
        self.before: Callable[[], None] = lambda: None

    def examples(self) -> Generator[list[Example], None, None]:
        while True:
            for examples in self.ready:
                self.before()
                yield examples


def training(kind: type[Training], priors: Priors, config: Config) -> Training:
    """An endless training of the paper's head on all samples, from one seed."""
    assert config.batch_size
    torch.manual_seed(0)
    recipe = TrainConfig(
        epochs=10_000, batch_size=config.batch_size, validate=0,
        precision="bf16" if config.device != "cpu" else "float32",
    )  # fmt: skip
    readers = default_readers(config.device) if config.readers is None else config.readers
    return kind(head_for(priors, config), priors, recipe, config.device, readers=readers)


def head_for(priors: Priors, config: Config) -> Head:
    """The paper's head for these priors."""
    shape = PriorShape(channels=priors.channels, layers=priors.layers, width=priors.width)
    sam = asdict(SAM_PRESETS[sam_of(config)])
    small = {"input_size": 32, "base_width": 16} if config.quick else {}
    return GroundingHead.from_values(shape, small | {"sam": sam})


def sam_of(config: Config) -> str:
    return "tiny" if config.quick else "vit_l"


def frozen_models(config: Config) -> Callable[[], None]:
    """What an online training runs before each of its steps."""
    assert config.batch_size
    name: Any = "mid" if config.device == "cpu" else "llava-1.5-7b"
    capture, _ = forward_of("capture", LMMConfig(config=name, device=config.device, batch=config.batch_size))
    preset = SAM_PRESETS[sam_of(config)]
    sam = build_sam(preset).requires_grad_(False).eval().to(config.device)
    size = preset.image_size
    pixels = [torch.randint(0, 255, (size * 3 // 4, size, 3), dtype=torch.uint8) for _ in range(config.batch_size)]

    @torch.no_grad()
    def run() -> None:
        capture()
        encode_images(sam, normalise_sam(pixels, size, config.device))

    return run


def take_turns(trainings: Sequence[Training], repeats: int, steps: int) -> list[list[float]]:
    """Seconds of so many steps of every training; they take turns, in an order that changes. The first warm up.

    What is read ahead is read within the turn, from its first step on: nobody works while it is another's turn.
    """
    seconds: list[list[float]] = [[] for _ in trainings]
    for repeat in range(1 + repeats):
        for number in np.random.default_rng(repeat).permutation(len(trainings)).tolist():
            each = trainings[number]
            start = time.perf_counter()
            feed = each.examples()
            for examples in islice(feed, steps):
                each.step(examples)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[number].append(time.perf_counter() - start)
            feed.close()
    return seconds


def main(config: Config) -> dict[str, Any]:
    assert config.steps and config.batch_size and config.online
    shutil.rmtree(config.out, ignore_errors=True)
    config.out.mkdir(parents=True)
    samples, gpu = config.steps * config.batch_size, config.device != "cpu"
    lmm = SMALL if config.quick else LLAVA
    priors = made_cache(config.out / "cache", lmm, sam_of(config), samples)
    cached, ready = (training(kind, priors, config) for kind in (Training, FromMemory))
    from_cache, from_memory = take_turns([cached, ready], config.repeats, config.steps)
    objects = priors.objects()
    waited = cached.history.waiting / sum(from_cache)
    result: dict[str, Any] = {
        "cache_over_memory": ratio(from_memory, from_cache),
        "objects_per_s": round(objects / median(from_cache), 2),
        "data_wait_share": round(waited, 4),
    }
    print(f"from the cache / from memory: {result['cache_over_memory']}", flush=True)
    if not gpu and not config.quick:  # the LMM in the loop is another one: so is the cache
        priors = made_cache(config.out / "mid", MID, sam_of(config), samples)
        cached = training(Training, priors, config)
        ready = training(FromMemory, priors, config)
    assert isinstance(ready, FromMemory)
    ready.before = frozen_models(config)
    few, share = (config.steps, 1.0) if gpu else (min(2, config.steps), min(2, config.steps) / config.steps)
    again, online = take_turns([cached, ready], config.online, few)
    result |= {
        "cache_over_online": ratio(online, again),
        "online_objects_per_s": round(share * priors.objects() / median(online), 2),
        "cache_objects_per_s_beside_online": round(share * priors.objects() / median(again), 2),
        "marks": MARKS,
        "head_parameters": sum(p.numel() for p in cached.head.parameters()),
        "attention": f"{lmm.layers} layers x {lmm.heads} heads of 24x24; online: "
        + ("the same" if gpu else f"{(SMALL if config.quick else MID).layers} layers"),
        "step": f"{config.batch_size} samples, {objects / config.steps:.1f} objects; {config.steps} steps a turn",
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "quality_claim": not config.quick,
    }
    shutil.rmtree(config.out)
    for key, value in result.items():
        print(f"{key:>36}  {value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
