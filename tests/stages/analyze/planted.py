"""A cache in which it is known what every map is: two show the mask, one never moves, the others are noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cache.plan import ROW_SCHEMA, PlanRow, pack, priors_arrays, rows_bytes, rows_table
from cache.priors import Priors
from cache.store import Store
from manifests.manifest import write_manifest
from manifests.masks import encode
from manifests.schema import Object, Piece, Sample

LAYERS, HEADS, GRID = 2, 3, 8
C = LAYERS * HEADS
TRUE, STILL, FAINT = 4, 1, 2  # the mask itself; the same blob for every object; the mask, torn, on a bright image
HEIGHT, WIDTH, BOX = 32, 48, (8, 0, 32, 48, 48)
TOP, ROWS = 1, 5  # of the grid's 8 rows these show the image: floor(8 · 8 / 48), round(32 · 8 / 48)


def rectangle(rng: np.random.Generator, *, least: int = 9) -> np.ndarray:
    """bool [HEIGHT, WIDTH]: a rectangle of at least so many pixels a side, anywhere."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    high, wide = rng.integers(least, 18, 2)
    y, x = rng.integers(0, HEIGHT - high + 1), rng.integers(0, WIDTH - wide + 1)
    mask[y : y + high, x : x + wide] = True
    return mask


def centres(mask: np.ndarray) -> np.ndarray:
    """bool [GRID, GRID], cell by cell: is the image's pixel at the cell's centre on the mask?"""
    cells = np.zeros((GRID, GRID), bool)
    for y in range(ROWS):
        for x in range(GRID):
            cells[TOP + y, x] = mask[int((y + 0.5) * HEIGHT / ROWS), int((x + 0.5) * WIDTH / GRID)]
    return cells


def make_planted(root: Path, *, samples: int = 12, split: str = "train", seed: int = 0, images: int = 99) -> Priors:
    """Two objects a sample, the second of them stuff, spoken of late. images: so many different ones at most."""
    rng = np.random.default_rng(seed)
    masks = [[rectangle(rng), rectangle(rng)] for _ in range(samples)]
    packing = pack([(2, 3, 12)] * samples, objects_per_unit=8, token_chunk=4, errors=[None] * samples)
    rows = [
        PlanRow(
            sample=i, unit=int(packing.unit[i]), batch=0, length=12, slot=int(packing.slot[i]), objects=2,
            token_slot=int(packing.token_slot[i]), token_counts=(1, 2), token_positions=(i % 3, 8 + i % 3, 9 + i % 3),
            answer_slot=int(packing.answer_slot[i]), answer_ids=tuple(range(12)), answer_word=tuple(range(12)),
            answer_object=(0,) + (-1,) * 11, image=-1, box=BOX,
        )
        for i in range(samples)
    ]  # fmt: skip
    manifest = root.parent / f"{root.name}.parquet"
    write_manifest(manifest, [_sample(i, split, found, images) for i, found in enumerate(masks)], {})
    store = Store.create_or_resume(
        root, kind="priors", soft={}, units=packing.units,
        identity={"lmm": {"layers": LAYERS, "heads": HEADS}, "images": None},
        arrays=priors_arrays(packing, channels=C, grid=(GRID, GRID), layers=LAYERS, width=4, token_chunk=4),
        files={"manifest.parquet": manifest.read_bytes(), "rows.parquet": rows_bytes(rows_table(rows, ROW_SCHEMA))},
    )  # fmt: skip
    for unit in store.missing_units():
        arrays: dict[str, Any] = {n: np.ones(s.unit_shape, s.dtype) for n, s in store.meta.arrays.items()}
        for row in (each for each in rows if each.unit == unit):
            slot = row.slot - unit * store.meta.arrays["attention"].slots_per_unit
            for number, mask in enumerate(masks[row.sample]):
                arrays["attention"][slot + number] = _maps(mask, rng)
                arrays["attention_mass"][slot + number] = rng.random(C)
        store.write_unit(unit, arrays, {"failures": []})
    store.finish([])
    return Priors.open(root)


def _maps(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    maps = rng.exponential(size=(C, GRID, GRID))
    maps[TRUE] = centres(mask) * (1 + 0.1 * rng.random((GRID, GRID)))
    maps[STILL] = 0.1
    maps[STILL, 2:5, 2:6] = 1 + 0.1 * rng.random((3, 4))
    maps[FAINT] = 0
    maps[FAINT, TOP : TOP + ROWS] = 0.5 + 0.1 * rng.random((ROWS, GRID))
    maps[FAINT][centres(mask) & (rng.random((GRID, GRID)) > 0.2)] = 1
    return (maps / maps.mean((1, 2), keepdims=True)).astype(np.float16)


def _sample(index: int, split: str, masks: list[np.ndarray], images: int) -> Sample:
    objects = tuple(
        Object(
            object_id=f"{index}-{k}", mask=encode(mask), is_thing=k == 0, plural=False, category="", phrase=f"thing {k}"
        )
        for k, mask in enumerate(masks)
    )
    return Sample(
        sample_id=str(index), dataset="d", split=split, task="referring", image_id=f"image {index % images}",
        image_path=f"{index}.png", height=HEIGHT, width=WIDTH, objects=objects,
        pieces=tuple(Piece(text="it", object=k) for k in range(2)),
    )  # fmt: skip
