"""Bytes of an object's attention on disk in every encoding, and the encodings' errors on real maps of the tiny LMM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

from cache.derive import Encoding, encoded, normalised, object_slots
from cache.layout import ArraySpec
from cache.priors import read_maps
from cache.store import Store
from manifests.scenes.write import ScenesConfig, write_scenes
from pipeline.cli import main as run_pipeline

KEPT: Final = 64  # maps of a pruned LLaVA-1.5
ENCODINGS: Final[tuple[Encoding, ...]] = ("lz4", "log8")
_SCENES: Final = ScenesConfig(train=16, val=2, test_a=2, test_b=2, narratives=6, shifted=1)  # more than 100 objects


def real_maps(cache: Path, scratch: Path) -> Store:
    """The embedded default's cache if it is there and complete, else a small one that is made in `scratch`."""
    if (cache / "cache.json").exists() and (store := Store.open(cache)).complete:
        return store
    write_scenes(scratch / "scenes", _SCENES)
    args = ["extract", "--local", "--data-root", str(scratch / "scenes"), "--cache", str(scratch / "maps")]
    if code := run_pipeline(args):
        raise SystemExit(code)
    return Store.open(scratch / "maps")


def encodings(source: Store, specs: Sequence[ArraySpec]) -> dict[str, dict[str, Any]]:
    """Of native, grid64, lz4, log8 and pruned64: an object's attention on disk as LLaVA-1.5-7B has it, and errors.

    Errors are of the real maps of `source`, after the heads' normalisation, and so is what lz4 saves. grid64: of the
    maps resized in float32. pruned64: of the maps that are kept.
    """
    attention = next(spec for spec in specs if spec.name == "attention")
    channels, grid = attention.item_shape[0], attention.item_shape[1:]
    exact = {"l1_error_mean": 0.0, "l1_error_max": 0.0}
    found: dict[str, dict[str, Any]] = {
        "native": {"bytes_per_object": _bytes(attention), **exact},
        "grid64": {"bytes_per_object": _bytes(attention, (channels, 64, 64)), **_grid64_errors(source)},
        "pruned64": {"bytes_per_object": _bytes(attention, (KEPT, *grid)), **exact},
    }
    for name in ENCODINGS:
        about = encoded(source, name).soft[name]
        saved = about["attention_bytes_after"] / about["attention_bytes_before"]
        size = round(found["native"]["bytes_per_object"] * saved)
        if name == "log8":  # known exactly: a peak of every map comes with it
            size = _bytes(attention, dtype="uint8") + 4 * channels + 20
        found[name] = {"bytes_per_object": size, "tiny_after_over_before": round(saved, 4), **about}
    return found


def _bytes(spec: ArraySpec, shape: tuple[int, ...] | None = None, dtype: str | None = None) -> int:
    changed = replace(spec, item_shape=shape or spec.item_shape, dtype=dtype or spec.dtype)
    return -(-changed.shard_bytes // spec.slots_per_unit)


def _grid64_errors(source: Store) -> dict[str, float]:
    """What float16 does to maps of 64×64 and mean 1."""
    errors = []
    for slot in object_slots(source)[:100].tolist():
        maps = torch.from_numpy(read_maps(source, slot, slot + 1).astype(np.float32))
        large = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)[0].numpy()
        large /= np.maximum(large.mean((-2, -1), keepdims=True), 1e-30)
        errors.append(np.abs(normalised(large.astype(np.float16)) - normalised(large)).sum((-2, -1)))
    l1 = np.concatenate(errors)
    return {"l1_error_mean": float(l1.mean()), "l1_error_max": float(l1.max())}
