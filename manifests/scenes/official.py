"""The official files of RefCOCO and PNG for rendered scenes: records collected scene by scene, then saved.

Ids depend on the scene alone: annotation = image · 10 + thing, ref = image · 10 + its place among the image's refs,
sentence = ref · 10 + k, panoptic segment = (value in `Scene.segments` + 1) · `SEGMENT_ID_STEP`.
"""

from __future__ import annotations

import io
import json
import pickle
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from manifests.masks import encode
from manifests.scenes.language import Segment, expressions, narrative
from manifests.scenes.world import SHAPES, STUFF, Scene

MAX_REFS: Final = 4
SEGMENT_ID_STEP: Final = 100_003  # so that the ids need all three bytes of a panoptic png
_CATEGORIES: Final = {name: number for number, name in enumerate((*SHAPES, *STUFF), start=1)}


@dataclass(kw_only=True, slots=True)
class RefcocoFiles:
    """`instances.json` and `refs(unc).p`, growing."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, scene: Scene, image_id: int, split: str, seed: int) -> None:
        """All things as annotations; up to `MAX_REFS` of them, in random order, as refs of up to three sentences."""
        file_name = f"COCO_train2014_{image_id:012d}.jpg"
        self.images.append({"id": image_id, "file_name": file_name, "height": scene.height, "width": scene.width})
        self.annotations += [_annotation(scene, i, image_id) for i in range(len(scene.things))]
        rng = random.Random(f"refs {seed}")
        kept = 0
        for index in rng.sample(range(len(scene.things)), len(scene.things)):
            texts = expressions(scene, index, rng, count=3)
            if not texts or kept == MAX_REFS:
                continue
            self.refs.append(_ref(image_id * 10 + kept, texts, scene.things[index].shape, image_id, index, split))
            kept += 1

    def save(self, folder: Path) -> list[Path]:
        """Write both files; returns their paths."""
        categories = [{"id": _CATEGORIES[name], "name": name, "supercategory": "thing"} for name in SHAPES]
        tables = {"images": self.images, "annotations": self.annotations, "categories": categories}
        instances, refs = folder / "instances.json", folder / "refs(unc).p"
        place(instances, as_json({"info": {"description": "rendered scenes"}, "licenses": [], **tables}))
        place(refs, pickle.dumps(self.refs, protocol=2))
        return [instances, refs]


def _annotation(scene: Scene, index: int, image_id: int) -> dict[str, Any]:
    mask = scene.thing_mask(index)
    return {
        "id": image_id * 10 + index,
        "image_id": image_id,
        "category_id": _CATEGORIES[scene.things[index].shape],
        "segmentation": encode(mask),
        "area": int(mask.sum()),
        "bbox": _bbox(mask),
        "iscrowd": 0,
    }


def _ref(ref_id: int, texts: list[str], category: str, image_id: int, index: int, split: str) -> dict[str, Any]:
    sent_ids = [ref_id * 10 + k for k in range(len(texts))]
    ann_id = image_id * 10 + index
    return {
        "sent_ids": sent_ids,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [
            {"tokens": text.split(), "raw": text, "sent_id": sent_id, "sent": text}
            for sent_id, text in zip(sent_ids, texts, strict=True)
        ],
        "category_id": _CATEGORIES[category],
    }


@dataclass(kw_only=True, slots=True)
class PngFiles:
    """The narratives and panoptic truth of one split, growing; the panoptic pngs are written at once."""

    home: Path
    split: str
    narratives: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, scene: Scene, image_id: int, seed: int) -> None:
        """A narrative, the panoptic records and the panoptic png of a scene."""
        name = f"{image_id:012d}"
        self.images.append({"id": image_id, "file_name": f"{name}.jpg", "height": scene.height, "width": scene.width})
        ids = (scene.segments.astype(np.int64) + 1) * SEGMENT_ID_STEP
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        place(self.home / "annotations" / f"panoptic_{self.split}2017" / f"{name}.png", encoded(rgb, "PNG"))
        kinds = (*scene.stuff, *(thing.shape for thing in scene.things))
        infos = [_segment_info(scene.segments == value, value, kind) for value, kind in enumerate(kinds)]
        self.annotations.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
        told = narrative(scene, random.Random(f"narrative {seed}"))
        segments = [_told_segment(part, len(scene.stuff)) for part in told]
        caption = " ".join(part.text for part in told)
        self.narratives.append({"image_id": str(image_id), "caption": caption, "segments": segments})

    def save(self) -> list[Path]:
        """Write both json files; returns their paths."""
        categories = [
            {"id": number, "name": name, "isthing": int(name in SHAPES), "supercategory": "thing"}
            for name, number in _CATEGORIES.items()
        ]
        panoptic = self.home / "annotations" / f"panoptic_{self.split}2017.json"
        narratives = self.home / "png" / f"png_coco_{self.split}2017.json"
        tables = {"images": self.images, "annotations": self.annotations, "categories": categories}
        place(panoptic, as_json({"info": {"description": "rendered scenes"}, "licenses": [], **tables}))
        place(narratives, as_json(self.narratives))
        return [panoptic, narratives]


def _told_segment(part: Segment, stuff: int) -> dict[str, Any]:
    """PNG's record of a run of words, in a scene of `stuff` stuff regions."""
    values = (*part.stuff, *(stuff + index for index in part.things))
    ids = [str((value + 1) * SEGMENT_ID_STEP) for value in values]
    return {"utterance": part.text, "noun": part.noun, "segment_ids": ids, "plural": part.plural}


def _segment_info(mask: np.ndarray, value: int, kind: str) -> dict[str, Any]:
    return {
        "id": (value + 1) * SEGMENT_ID_STEP,
        "category_id": _CATEGORIES[kind],
        "area": int(mask.sum()),
        "bbox": _bbox(mask),
        "iscrowd": 0,
    }


def _bbox(mask: np.ndarray) -> list[int]:
    """COCO's box [x, y, width, height] of a mask [h, w]; zeros where it has no pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """The image file of uint8 [h, w, 3] pixels; kind: JPEG or PNG, options: Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def place(path: Path, data: bytes) -> None:
    """Write a file, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def as_json(value: Any) -> bytes:
    """The same bytes for the same value."""
    return json.dumps(value, separators=(",", ":")).encode()
