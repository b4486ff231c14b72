"""GranD-f's four training files for grounded conversation generation, in three formats.

    GranDf/annotations/train/GranDf_HA_GCG_train.json          human annotated; GranDf_HA_images/train/*.jpg
    GranDf/annotations/train/OpenPsgGCG_train.json             of Open-PSG; COCO's train2017
    GranDf/annotations/train/flickr_mergedGT_GCG_train.json    of Flickr30k
    GranDf/annotations/train/RefCOCOg_GCG_train.json           of RefCOCOg; COCO's train2014

Facts of the formats are those of the official reader, dataset/gcg_datasets/GranDf_gcg_ds.py of
https://github.com/mbzuai-oryx/groundingLMM. Images of COCO are looked for where the other datasets have them
(`manifests.build.LAYOUT`), not in the official `coco_2014` and `coco_2017`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from manifests.errors import DatasetError
from manifests.files import check_record, read_json, records
from manifests.gcg import QUESTION, SOURCE, Caption, Grounding, clean, readable, sample_of, size_of
from manifests.schema import Sample
from manifests.spans import Span, find_labels

SPLIT: Final = "train"
ANNOTATIONS: Final = "GranDf/annotations/train"
PARTS: Final = {
    "human": ("GranDf_HA_GCG_train.json", "GranDf_HA_images/train"),
    "psg": ("OpenPsgGCG_train.json", "train2017"),
    "flickr": ("flickr_mergedGT_GCG_train.json", "flikcr_30k/train"),
    "refcocog": ("RefCOCOg_GCG_train.json", "train2014"),
}
"""Of each part the file and the folder of its images ("flikcr" is the official spelling)."""


def read_gcg_train(
    root: str | Path,
    part: str,
    *,
    prompt: str = QUESTION,
    annotations: str | Path = ANNOTATIONS,
    image_dir: str | None = None,
    dataset_name: str = "gcg",
) -> Iterator[Sample]:
    """One sample per caption of one of `PARTS`, in the order of the file. Arguments and errors as of `read_gcg`.

    Several masks of one phrase are one plural object. As in the official reader a phrase of RefCOCOg that its caption
    does not have is left out, and so are captions of Flickr30k of fewer than 3 words or on an image of less than 32
    pixels a side, and boxes of it that are empty. Captions without a phrase are kept; they can not be used, and the
    plan says so.
    """
    captions = _captions(Path(root), part, annotations, image_dir)
    return (sample_of(caption, Path(root), SPLIT, prompt, dataset_name) for caption in captions)


def image_paths(
    root: str | Path, part: str, *, annotations: str | Path = ANNOTATIONS, image_dir: str | None = None
) -> Iterator[str]:
    """`image_path` of every sample of `read_gcg_train`, without making a mask."""
    return (caption.image_path for caption in _captions(Path(root), part, annotations, image_dir))


def _captions(root: Path, part: str, annotations: str | Path, image_dir: str | None) -> list[Caption]:
    if part not in PARTS:
        raise DatasetError(f"GranD-f has no training part {part!r}; it has {', '.join(PARTS)}")
    file, images = PARTS[part]
    path = root / annotations / file
    parse: Callable[[Path, str], list[Caption]] = {"flickr": _flickr, "refcocog": _refcocog}.get(part, _grounded)
    return parse(path, image_dir or images)


def _grounded(path: Path, image_dir: str) -> list[Caption]:
    """[{file_name, caption, groundings: {phrase: {token_positives: [start, end], rle_masks: [RLE, …]}}}, …]"""
    captions = []
    for number, row in enumerate(read_json(path, list, SOURCE)):
        check_record(row, {"file_name": str, "caption": str, "groundings": dict}, f"{path}: caption {number}")
        groundings = []
        for phrase, found in row["groundings"].items():
            where = f"{path}: caption {number}, groundings"
            check_record(found, {"token_positives": list, "rle_masks": list}, where)
            span = _span(found["token_positives"], where)
            groundings.append(Grounding(text=phrase, span=span, segmentations=found["rle_masks"]))
        captions.append(_caption(number, row, row["file_name"], image_dir, clean(row["caption"]), groundings))
    return captions


def _refcocog(path: Path, image_dir: str) -> list[Caption]:
    """[{key: {img_file_name, caption, refs: [{sentence, segmentation: polygons}, …]}}, …]; phrases are looked for."""
    captions = []
    for number, entry in enumerate(read_json(path, list, SOURCE)):
        row: Any = next(iter(entry.values()), None) if isinstance(entry, dict) else None
        check_record(row, {"img_file_name": str, "caption": str, "refs": list}, f"{path}: caption {number}")
        for ref in row["refs"]:
            check_record(ref, {"sentence": str, "segmentation": (list, dict)}, f"{path}: caption {number}, refs")
        text = clean(row["caption"]).lower()
        sentences = [ref["sentence"].strip() for ref in row["refs"]]
        spans = find_labels(text, sentences) if readable(text, *sentences) else [None] * len(sentences)
        groundings = [
            Grounding(text=sentence, span=span, segmentations=[ref["segmentation"]])
            for sentence, span, ref in zip(sentences, spans, row["refs"], strict=True)
            if span is not None
        ]
        captions.append(_caption(number, row, row["img_file_name"], image_dir, text, groundings))
    return captions


def _flickr(path: Path, image_dir: str) -> list[Caption]:
    """COCO's: images with a caption; annotations with bbox, area, tokens_positive [[start, end], …], sam_mask."""
    content = read_json(path, dict, SOURCE)
    groundings: dict[Any, list[Grounding]] = {}
    where = f"{path}: annotations"
    for row in records(content, "annotations", path):
        numbers = (int, float)
        check_record(row, {"image_id": (int, str), "bbox": list, "area": numbers, "tokens_positive": list}, where)
        if len(row["bbox"]) != 4 or not all(isinstance(n, numbers) for n in row["bbox"]) or not row["tokens_positive"]:
            raise DatasetError(f"{where}: a record has no proper bbox or tokens_positive: {SOURCE}")
        if row.get("ignore") or row["area"] <= 0 or min(row["bbox"][2:]) < 1:
            continue
        span = _span(row["tokens_positive"][0], where)
        groundings.setdefault(row["image_id"], []).append(
            Grounding(text="", span=span, segmentations=[row.get("sam_mask")])
        )
    captions = []
    for number, row in enumerate(records(content, "images", path)):
        check_record(row, {"id": (int, str), "file_name": str, "caption": str}, f"{path}: images")
        size = size_of(row)
        if len(row["caption"].split(" ")) < 3 or (size and min(size) < 32):
            continue
        captions.append(
            _caption(number, row, row["file_name"], image_dir, row["caption"], groundings.get(row["id"], []))
        )
    return captions


def _caption(
    number: int, row: dict[str, Any], file_name: str, image_dir: str, text: str, groundings: list[Grounding]
) -> Caption:
    return Caption(
        key=str(number),
        image_id=Path(file_name).stem,
        image_path=f"{image_dir}/{file_name}",
        text=text,
        groundings=groundings,
        size=size_of(row),
    )


def _span(value: Any, where: str) -> Span:
    if not (isinstance(value, list) and [type(n) for n in value[:2]] == [int, int]):
        raise DatasetError(f"{where}: a phrase's place is not [start, end]: {SOURCE}")
    return value[0], value[1]
