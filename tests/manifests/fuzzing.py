"""Sound files of every format, small, and how to spoil them: what tests/manifests/test_fuzz.py does to every reader.

A new format is one more entry of `FORMATS`: the dataset's name and a function that writes its files below a root.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from manifests.masks import encode

MASK: Final = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True
RLE: Final = dict(encode(MASK))
POLYGON: Final = [2, 1, 7, 1, 7, 4, 2, 4]
NAME: Final = "000000000007"
_IMAGE: Final = {"id": 7, "file_name": f"{NAME}.jpg", "height": 6, "width": 8}
_CATEGORIES: Final = [{"id": 1, "name": "cup", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]


def put(root: Path, name: str, content: Any) -> None:
    """Write a file: bytes as they are, a picture by its name's ending, anything else as JSON."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def _photo(root: Path, name: str) -> None:
    put(root, name, np.full((6, 8, 3), 200, np.uint8))


def refcoco(root: Path) -> None:
    shapes = [[POLYGON], {"size": [6, 8], "counts": [0, 6, 42]}, RLE]
    annotations = [{"id": k, "image_id": 7, "category_id": 1, "segmentation": s} for k, s in enumerate(shapes)]
    put(root, "refcoco/refcoco/instances.json", _tables([_IMAGE], annotations))
    refs = [
        {
            "ref_id": 10 + k, "ann_id": k, "image_id": 7, "category_id": 1, "split": split,
            "sentences": [{"sent": "the cup", "raw": "The cup", "sent_id": k, "tokens": ["the", "cup"]}] * 2,
        }
        for k, split in enumerate(("val", "val", "train"))
    ]  # fmt: skip
    put(root, "refcoco/refcoco/refs(unc).p", pickle.dumps(refs, 2))
    _photo(root, f"train2014/{NAME}.jpg")


def _tables(images: Any, annotations: Any) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": _CATEGORIES}


def panoptic(root: Path) -> None:
    ids = np.array([[5] * 4 + [70000] * 4] * 3 + [[6] * 4 + [0] * 4] * 3)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    infos = [{"id": 5, "category_id": 1}, {"id": 70000, "category_id": 2}, {"id": 6, "category_id": 1, "iscrowd": 1}]
    annotations = [{"image_id": 7, "file_name": f"{NAME}.png", "segments_info": infos}]
    put(root, "annotations/panoptic_val2017.json", _tables([_IMAGE], annotations))
    put(root, f"annotations/panoptic_val2017/{NAME}.png", rgb)
    _photo(root, f"val2017/{NAME}.jpg")


def png(root: Path) -> None:
    panoptic(root)
    told = [("the cups", ["5", "6"], True), ("under", [], False), ("the sky", ["70000"], False)]
    segments = [{"utterance": t, "noun": bool(ids), "segment_ids": ids, "plural": many} for t, ids, many in told]
    narrative = {"image_id": "7", "caption": "the cups under the sky", "segments": segments}
    put(root, "png/png_coco_val2017.json", [narrative, narrative])


def reasonseg(root: Path) -> None:
    points = [[2, 1], [7, 1], [7.5, 4], [2, 4]]
    shapes = [{"label": label, "points": points} for label in ("target", "ignore", "flag")]
    annotation = {"shapes": shapes, "text": ["what holds tea?", "the cup"], "is_sentence": True}
    put(root, "reason_seg/ReasonSeg/val/a.json", annotation)
    _photo(root, "reason_seg/ReasonSeg/val/a.jpg")


def gcg(root: Path) -> None:
    caption = {"image_id": NAME, "id": 1, "caption": "A cup under the sky.", "labels": ["A cup", "the sky"]}
    images = [{"id": NAME, "height": 6, "width": 8}]
    masks = [{"image_id": NAME, "segmentation": RLE}, {"image_id": NAME, "segmentation": [POLYGON]}]
    folder = "GranDf/annotations/val_test"
    put(root, f"{folder}/val_gcg_coco_caption_gt.json", {"images": images, "annotations": [caption]})
    put(root, f"{folder}/val_gcg_coco_mask_gt.json", {"images": images, "annotations": masks})
    _photo(root, f"GranDf_HA_images/val_test/{NAME}.jpg")


def gcg_grounded(root: Path) -> None:
    groundings = {"A cup": {"token_positives": [0, 5], "rle_masks": [RLE]}}
    row = {"file_name": "a.jpg", "height": 6, "width": 8, "caption": "A cup here.", "groundings": groundings}
    put(root, "GranDf/annotations/train/OpenPsgGCG_train.json", [row])
    _photo(root, "train2017/a.jpg")


def gcg_refcocog(root: Path) -> None:
    refs = [{"sentence": "a cup", "segmentation": [POLYGON]}]
    row = {"img_file_name": "a.jpg", "height": 6, "width": 8, "caption": "A cup here.", "refs": refs}
    put(root, "GranDf/annotations/train/RefCOCOg_GCG_train.json", [{"1": row}])
    _photo(root, "train2014/a.jpg")


def gcg_flickr(root: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "height": 60, "width": 80, "caption": "A cup is here."}]
    box = {"image_id": 7, "bbox": [1, 1, 5, 5], "area": 9.5, "tokens_positive": [[0, 5]], "iscrowd": 0}
    shape = dict(encode(np.ones((60, 80), bool)))
    annotations = [box | {"sam_mask": shape}]
    put(root, "GranDf/annotations/train/flickr_mergedGT_GCG_train.json", _tables(images, annotations))
    put(root, "flikcr_30k/train/a.jpg", np.zeros((60, 80, 3), np.uint8))


def own(root: Path) -> None:
    put(root, "masks/m.png", MASK.astype(np.uint8) * 255)
    masks: list[Any] = ["masks/m.png", {"rle": RLE}, {"polygon": POLYGON}, None]
    pieces = [{"text": f"thing {k}", "mask": mask, "plural": False} for k, mask in enumerate(masks)]
    lines = [{"image": "a.jpg", "pieces": pieces, "split": "val"}, {"image": "a.jpg", "pieces": pieces[:1]}]
    put(root, "samples.jsonl", "\n".join(map(json.dumps, lines)).encode())
    _photo(root, "a.jpg")


def own_coco(root: Path) -> None:
    shapes = [[POLYGON], RLE, [POLYGON, POLYGON]]
    annotations = [
        {"id": k, "image_id": 7, "category_id": 1, "segmentation": s, "iscrowd": k % 2} for k, s in enumerate(shapes)
    ]
    annotations[0]["phrase"] = "the left cup"
    put(root, "annotations/val.json", _tables([_IMAGE], annotations))
    _photo(root, f"images/{NAME}.jpg")


FORMATS: Final[dict[str, Callable[[Path], None]]] = {
    "refcoco": refcoco,
    "png": png,
    "coco-panoptic": panoptic,
    "reasonseg": reasonseg,
    "gcg": gcg,
    "gcg-psg": gcg_grounded,
    "gcg-refcocog": gcg_refcocog,
    "gcg-flickr": gcg_flickr,
    "own": own,
    "own-coco": own_coco,
}
"""Name in `manifests.build.DATASETS` -> writes sound files of it below a root."""

NASTY: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 2**31, 10**9, 2**63, 10**30, -(10**18), 0.5, -1e300, 1e-300, float("nan"),
    float("inf"), "", " ", "7", "-7", "x" * 300, "x" * 20_000, "\ud800", "a\x00b", "two\nlines", "٣", "9" * 5000,
    "../../etc/passwd", "/etc/passwd", "C:\\x", "..", "a/../b", [], {}, [[]], [None], {"": ""}, [1, 2, 3], ["a", "b"],
    {"size": [6, 8], "counts": "o"}, {"size": [10**9, 10**9], "counts": "0"}, {"size": [6, 8], "counts": [48]},
    {"size": [True, 8], "counts": [8]}, {"size": [6, 8], "counts": [-1, 49]}, {"size": [2, 2], "counts": "04"},
    [[0, 0, 1e12, 0, 5, 5]], [[float("nan")] * 6], [[0, 0] * 40_000], [[-16, 0, 32, 5] * 20_000],
]  # fmt: skip


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes of a JSON tree, the root's first."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in inner for found in nodes(value, (*path, key)))]


def spoil(draw: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with a node replaced, deleted, duplicated, renamed, or nested deeply."""
    path = draw(st.sampled_from(nodes(tree)))
    how = draw(st.sampled_from(["replace"] * 6 + ["delete", "duplicate", "other", "nest", "rename"]))
    if not path:
        return draw(st.sampled_from(NASTY)) if how == "replace" else [tree] if how == "nest" else tree
    *above, key = path
    parent = tree
    for step in above:
        parent = parent[step]
    if how == "delete":
        del parent[key]
    elif how == "duplicate" and isinstance(parent, list):
        parent.insert(0, json.loads(json.dumps(parent[key])))
    elif how == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["", "x", "id", "\ud800", "a\nb"]))] = parent.pop(key)
    elif how == "nest":
        deep: Any = parent[key]
        for _ in range(draw(st.sampled_from([1, 2, 60]))):
            deep = [deep]
        parent[key] = deep
    elif how == "other":
        source = draw(st.sampled_from(nodes(tree)))
        value = tree
        for step in source:
            value = value[step]
        parent[key] = json.loads(json.dumps(value))
    else:
        parent[key] = draw(st.sampled_from(NASTY))
    return tree


def flip(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """The bytes with some changed, cut off, or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert", "drop"]))
        if how == "cut":
            del changed[place:]
        elif how == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=6))
        elif how == "drop":
            del changed[place : place + draw(st.integers(1, 8))]
        elif changed:
            changed[place] = draw(st.integers(0, 255))
    return bytes(changed)
