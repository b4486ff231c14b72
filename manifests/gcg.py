"""GranD-f, grounded conversation generation (GCG): an image, a prompt for a caption, and the caption that is right.

    GranDf/annotations/val_test/{val,test}_gcg_coco_caption_gt.json, {val,test}_gcg_coco_mask_gt.json
    GranDf_HA_images/val_test/*.jpg

The caption file is COCO's: {"images": [{"id"}], "annotations": [{"image_id", "caption", "labels": [phrase, …]}]}, the
mask file {"annotations": [{"image_id", "segmentation": RLE}]}; an image's id is a text, the name of its jpg.

Neither file says where in the caption a phrase stands, or which mask is whose. Label k belongs to the image's k-th
mask: the official evaluation takes that for granted (eval/gcg/evaluate.py of
https://github.com/mbzuai-oryx/groundingLMM). Its words are looked for in the caption (`manifests.spans.find_labels`),
which is a guess where a phrase occurs more than once. A label that the caption does not have is said after its end, so
that its mask is an object all the same. `manifests.gcg_train` reads the training files, which know the places.

Pieces are without the spaces between them, as PNG's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from manifests.errors import DatasetError
from manifests.files import MAX_TEXT, check_record, read_json, records, short, text_fault
from manifests.masks import Rle, empty, from_segmentation, union
from manifests.pictures import picture_size, size_fault
from manifests.schema import Object, Piece, Sample, leaves_root
from manifests.spans import Span, divide, find_labels

SOURCE: Final = (
    "get the annotations from https://huggingface.co/datasets/MBZUAI/GranD-f and the images as "
    "https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/datasets.md says; layout: "
    "GranDf/annotations/{val_test,train}/*.json, GranDf_HA_images/{val_test,train}/*.jpg"
)
SPLITS: Final = ("val", "test")
QUESTION: Final = (
    "Could you please give me a detailed description of the image? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer."
)
"""GLaMM's prompt (eval/gcg/infer.py there). F-LMM asks "Please give me a detailed description of the image."."""
MAX_PHRASES: Final = 1000
UNNAMED: Final = "object"  # what an object is called in the caption whose label is empty


@dataclass(kw_only=True, slots=True)
class Grounding:
    """A phrase: its words, where the caption has them (None: nowhere), and its masks as the file has them."""

    text: str
    span: Span | None
    segmentations: list[Any]


@dataclass(kw_only=True, slots=True)
class Caption:
    """A checked record of any of the files. size: (height, width) as the record says, None if it does not.

    key: of this caption among all of its file.  image_path, image_id: as of a sample, None: the key.
    text: the caption.  error: what is wrong with the record.
    """

    key: str
    image_path: str
    text: str
    image_id: str | None = None
    groundings: list[Grounding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    error: str | None = None


def read_gcg(
    root: str | Path,
    split: str,
    *,
    prompt: str = QUESTION,
    annotations: str | Path = "GranDf/annotations/val_test",
    image_dir: str = "GranDf_HA_images/val_test",
    dataset_name: str = "gcg",
) -> Iterator[Sample]:
    """One sample per image, in the order of the caption file; its pieces are the caption, an object per phrase.

    annotations: the folder of both files, relative to `root` or absolute.  image_dir: relative to `root`.

    Of several captions of an image the first is taken, as by the official evaluation. Entries of one phrase that stand
    at one place of the caption are one plural object, its mask their union. An image without a caption, with more or
    fewer labels than masks, or with a broken mask: the error of its sample. Files are read and checked here, masks made
    while iterating. Raises DatasetError for an unknown split, a missing file and a record of another format.
    """
    captions = _captions(Path(root), split, annotations, image_dir)
    return (sample_of(caption, Path(root), split, prompt, dataset_name) for caption in captions)


def image_paths(
    root: str | Path,
    split: str,
    *,
    annotations: str | Path = "GranDf/annotations/val_test",
    image_dir: str = "GranDf_HA_images/val_test",
) -> Iterator[str]:
    """`image_path` of every sample of `read_gcg`, without making a mask."""
    return (caption.image_path for caption in _captions(Path(root), split, annotations, image_dir))


def _captions(root: Path, split: str, annotations: str | Path, image_dir: str) -> list[Caption]:
    if split not in SPLITS:
        raise DatasetError(f"GranD-f's GCG has no split {split!r}; it has {', '.join(SPLITS)}")
    said_path = root / annotations / f"{split}_gcg_coco_caption_gt.json"
    mask_path = root / annotations / f"{split}_gcg_coco_mask_gt.json"
    said, masks = read_json(said_path, dict, SOURCE), read_json(mask_path, dict, SOURCE)
    texts: dict[str, dict[str, Any]] = {}
    for row in records(said, "annotations", said_path):
        check_record(row, {"image_id": (str, int), "caption": str, "labels": list}, f"{said_path}: annotations")
        if not all(isinstance(label, str) for label in row["labels"]):
            raise DatasetError(f"{said_path}: image {short(row['image_id'])} has a label that is no text: {SOURCE}")
        texts.setdefault(str(row["image_id"]), row)
    shapes: dict[str, list[Any]] = {}
    for row in records(masks, "annotations", mask_path):
        check_record(row, {"image_id": (str, int), "segmentation": (dict, list)}, f"{mask_path}: annotations")
        shapes.setdefault(str(row["image_id"]), []).append(row["segmentation"])
    images: dict[str, dict[str, Any]] = {}
    for row in records(said, "images", said_path):
        check_record(row, {"id": (str, int)}, f"{said_path}: images")
        images.setdefault(str(row["id"]), row)
    return [
        _caption(key, row, texts.get(key), shapes.get(key, []), f"{image_dir}/{key}.jpg") for key, row in images.items()
    ]


def _caption(
    key: str, image: dict[str, Any], said: dict[str, Any] | None, shapes: list[Any], image_path: str
) -> Caption:
    text, labels = ("", []) if said is None else (clean(said["caption"]), [label.strip() for label in said["labels"]])
    fault = None
    if said is None:
        fault = "the image has none: download it again"
    elif len(labels) != len(shapes):
        fault = f"it has {len(labels)} labels and {len(shapes)} masks: correct its annotation"
    spans = find_labels(text, labels) if readable(text, *labels) else []
    return Caption(
        key=key,
        image_path=image_path,
        text=text,
        groundings=[
            Grounding(text=label or "", span=span, segmentations=[] if shape is None else [shape])
            for label, span, shape in zip_longest(labels, spans, shapes)
        ],
        size=size_of(image),
        error=fault,
    )


def readable(*texts: str) -> bool:
    """Are these few enough, each and all together of a length that phrases can be looked for?"""
    few = len(texts) <= MAX_PHRASES and sum(map(len, texts)) <= 4 * MAX_TEXT
    return few and all(text_fault(text) is None for text in texts)


def clean(caption: str) -> str:
    """Without quotation marks and spaces around it, as the official readers have it: spans count from there."""
    return caption.strip('"').strip()


def size_of(record: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of a record that has them, as numbers or as text."""
    height, width = (str(record.get(name, "")) for name in ("height", "width"))
    if not (height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10):
        return None
    return int(height), int(width)


def sample_of(caption: Caption, root: Path, split: str, prompt: str, dataset: str) -> Sample:
    """The sample of a record; what is wrong with its texts, size or masks is the sample's error."""
    faults = [caption.error, _unreadable(caption), *map(_unreadable, caption.groundings)]
    try:
        height, width = _size(caption, root)
    except ValueError as refused:
        faults.append(str(refused))
        height, width = 1, 1  # the size is not known; the smallest that a mask can have
    sample_id = f"{dataset}/{split}/{caption.key}"
    objects: list[Object] = []
    pieces: list[Piece] = []
    for said, found in _pieces(caption):
        pieces.append(Piece(text=said, object=len(objects) if found else None))
        if not found:
            continue
        shapes = [shape for grounding in found for shape in grounding.segmentations]
        mask, fault = _mask(shapes, height, width)
        faults.append(fault and f"the mask of {said!r} is broken ({fault}): correct its annotation")
        objects.append(
            Object(
                object_id=f"{sample_id}/{len(objects)}",
                mask=mask,
                is_thing=True,
                plural=len(shapes) > 1,
                category="",
                phrase=said,
            )
        )
    error = next((fault for fault in faults if fault), None)
    return Sample(
        sample_id=sample_id,
        dataset=dataset,
        split=split,
        task="conversation",
        image_id=caption.key if caption.image_id is None else caption.image_id,
        image_path=caption.image_path,
        height=height,
        width=width,
        prompt=prompt,
        pieces=tuple(pieces),
        objects=tuple(objects),
        error=error and f"caption {short(caption.key)}: {error}",
    )


def _unreadable(part: Caption | Grounding) -> str | None:
    """What is wrong with a text, which is then taken away."""
    fault = text_fault(part.text)
    if fault is None:
        return None
    part.text = ""
    return f"a text of it {fault}: correct it"


def _pieces(caption: Caption) -> list[tuple[str, list[Grounding]]]:
    """The caption's pieces, then what it does not say, each with what it names."""
    placed = [(grounding, grounding.span) for grounding in caption.groundings if grounding.span is not None]
    parts = divide(caption.text, [span for _, span in placed])
    told = {number for _, numbers in parts for number in numbers}
    pieces = [(text, [placed[k][0] for k in numbers]) for text, numbers in parts]
    untold = [grounding for k, (grounding, _) in enumerate(placed) if k not in told]
    untold += [grounding for grounding in caption.groundings if grounding.span is None]
    return pieces + [(grounding.text or UNNAMED, [grounding]) for grounding in untold]


def _size(caption: Caption, root: Path) -> tuple[int, int]:
    """(height, width): the record's, else that of its first RLE, else the picture's. Raises ValueError for none."""
    shapes = [shape for grounding in caption.groundings for shape in grounding.segmentations]
    sizes = [shape.get("size") for shape in shapes if isinstance(shape, dict)]
    size = caption.size or next((s for s in sizes if isinstance(s, list) and [type(n) for n in s] == [int, int]), None)
    if size is None and not leaves_root(caption.image_path):
        size = picture_size(root / caption.image_path)
    height, width = size or (0, 0)
    if fault := size_fault(height, width):
        raise ValueError(f"its image {fault}: correct its annotation")
    return height, width


def _mask(shapes: list[Any], height: int, width: int) -> tuple[Rle, str | None]:
    """The union; where it can not be had, a mask without pixels and the reason."""
    try:
        mask = union([from_segmentation(shape, height, width) for shape in shapes] or [empty(height, width)])
        if mask["size"] != [height, width]:
            raise ValueError(f"{mask['size'][0]}x{mask['size'][1]} pixels, the image has {height}x{width}")
        return mask, None
    except ValueError as fault:
        return empty(height, width), str(fault)
