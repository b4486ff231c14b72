"""The official files of ReasonSeg and of GranD-f's GCG for rendered scenes.

ReasonSeg's questions are those that the tiny LMM has learned to answer, about scenes that it has not seen; the mask is
that of the things asked about. GCG's captions are the narratives that PNG's files hold in pieces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.masks import encode
from manifests.scenes.language import narrative
from manifests.scenes.lessons import Question, question
from manifests.scenes.official import as_json, place
from manifests.scenes.world import Scene

KINDS: Final = {"texture": 3, "ground": 3, "colour": 3, "count": 1, "exists": 1, "absent": 1}  # how often, in parts
IGNORED: Final = 0.15  # share of ReasonSeg's scenes with something that counts neither for nor against an answer


@dataclass(kw_only=True, slots=True)
class ReasonSegFiles:
    """The json files of one split; each is written at once, and listed in `written`."""

    folder: Path
    written: list[Path] = field(default_factory=list)

    def add(self, scene: Scene, name: str, seed: int) -> None:
        """`name`.json: one question, and polygons that drawn as by the official reader are its things' masks.

        In some scenes another thing is ignored, as if it might have been meant; some have a shape that is a mere flag.
        """
        rng = random.Random(f"reasonseg {seed}")
        asked = _asked(scene, rng)
        shapes = [shape for index in asked.things for shape in _shapes("target", scene.thing_mask(index))]
        others = [index for index in range(len(scene.things)) if index not in asked.things]
        if others and rng.random() < IGNORED:
            shapes += _shapes("ignore", scene.thing_mask(rng.choice(others)))
        if rng.random() < 0.1:
            shapes.append({"label": "flag", "points": [[0.0, 0.0], [9.0, 0.0], [9.0, 9.0]]})
        rng.shuffle(shapes)
        path = self.folder / f"{name}.json"
        place(path, as_json({"shapes": shapes, "text": [asked.text], "is_sentence": asked.long}))
        self.written.append(path)

    def save(self) -> list[Path]:
        """The paths of all files."""
        return self.written


def _asked(scene: Scene, rng: random.Random) -> Question:
    """A question of a kind that is drawn first; of any other where the scene hardly gives it."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    for _ in range(40):
        asked = question(scene, rng)
        if kind == (asked.kind if asked.things else "absent"):
            break
    return asked


def _shapes(label: str, mask: np.ndarray) -> list[dict[str, Any]]:
    return [{"label": label, "points": [[x + 0.5, y + 0.5] for x, y in outline]} for outline in outlines(mask)]


def outlines(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed polygons of whole-numbered (x, y) whose insides and outlines together are just the pixels of a mask.

    A run of pixels of one row is continued by a run of the next as long as they are each other's only neighbours; each
    such column of runs is one polygon, its left side from top to bottom, then its right side back up. All edges go
    along rows and columns, inside the mask.
    """
    done: list[list[tuple[int, int, int]]] = []
    growing: list[list[tuple[int, int, int]]] = []
    for y in range(mask.shape[0] + 1):
        runs = _runs(mask[y]) if y < mask.shape[0] else []
        grown = []
        for column in growing:
            below = [run for run in runs if _touch(run, column[-1][1:])]
            above = [c for c in growing if len(below) == 1 and _touch(below[0], c[-1][1:])]
            if len(below) == len(above) == 1:
                column.append((y, *below[0]))
                grown.append(column)
            else:
                done.append(column)
        taken = [column[-1][1:] for column in grown]
        growing = grown + [[(y, *run)] for run in runs if run not in taken]
    return [_outline(column) for column in done]


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """First and last pixel of every run of a row."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8))).tolist()
    return [(start, end - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _touch(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) <= min(a[1], b[1])


def _outline(column: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The polygon of runs (y, first, last) of consecutive rows, each of which touches the next."""
    left, right = [(column[0][1], column[0][0])], [(column[0][2], column[0][0])]
    for (y, first, last), (_, first_below, last_below) in pairwise(column):
        inner, outer = max(first, first_below), min(last, last_below)
        left += [(inner, y), (inner, y + 1), (first_below, y + 1)]
        right += [(outer, y), (outer, y + 1), (last_below, y + 1)]
    points = left + right[::-1]
    return [point for k, point in enumerate(points) if k == 0 or point != points[k - 1]]


@dataclass(kw_only=True, slots=True)
class GcgFiles:
    """Caption and mask file of one split, growing."""

    folder: Path
    split: str
    images: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, scene: Scene, name: str, seed: int) -> None:
        """The narrative of `PngFiles` as a caption, a label and a mask for each of its grounded phrases."""
        told = narrative(scene, random.Random(f"narrative {seed}"))
        grounded = [part for part in told if part.things or part.stuff]
        self.images.append({"id": name, "height": scene.height, "width": scene.width})
        self.captions.append(
            {
                "id": len(self.captions),
                "image_id": name,
                "caption": " ".join(part.text for part in told),
                "labels": [part.text for part in grounded],
            }
        )
        for part in grounded:
            masks = [scene.thing_mask(i) for i in part.things] + [scene.stuff_mask(i) for i in part.stuff]
            mask = np.logical_or.reduce(masks)
            self.masks.append(
                {
                    "id": len(self.masks),
                    "image_id": name,
                    "category_id": 1,
                    "segmentation": encode(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )

    def save(self) -> list[Path]:
        """Write both files; returns their paths."""
        captions, masks = (self.folder / f"{self.split}_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask"))
        place(captions, as_json({"images": self.images, "annotations": self.captions}))
        categories = [{"id": 1, "name": "object"}]
        place(masks, as_json({"images": self.images, "annotations": self.masks, "categories": categories}))
        return [captions, masks]
