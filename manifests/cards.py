"""A card for every dataset: what it is, where it comes from, its licence, its folders and how much it officially holds.

Numbers were read in the source that is named beside them; what is not published there is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

_TFDS_REFCOCO: Final = (
    "https://github.com/tensorflow/datasets/blob/master/tensorflow_datasets/datasets/ref_coco/README.md"
)
_FLAGEVAL: Final = (
    "https://flageval.baai.ac.cn/docs/en/multimodal/Visual-Grounding/RefCOCO_RefCOCO+_RefCOCOg-Visual_Grounding.html"
)
_TFDS_PANOPTIC: Final = (
    "https://github.com/tensorflow/datasets/blob/master/tensorflow_datasets/testing/metadata/coco/2017_panoptic/1.1.0/"
    "dataset_info.json"
)
_LISA: Final = "https://github.com/dvlab-research/LISA#dataset"
_GLAMM: Final = "https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/datasets.md"
_IMAGES_2014: Final = "http://images.cocodataset.org/zips/train2014.zip"
_COCO_LICENCE: Final = (
    "COCO's annotations CC BY 4.0, its photos under Flickr's terms (https://cocodataset.org/#termsofuse)"
)
_REFER: Final = {  # the university's server is gone; copies that https://github.com/dvlab-research/LISA names
    folder: f"https://web.archive.org/web/{when}/https://bvisionweb1.cs.unc.edu/licheng/referit/data/{folder}.zip"
    for folder, when in (("refcoco", 20220413011718), ("refcoco+", 20220413011656), ("refcocog", 20220413012904))
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a split officially holds; None: not published where we looked.

    images: different ones.  objects: refs of RefCOCO.  expressions: sentences, each of every object.
    """

    images: int | None = None
    objects: int | None = None
    expressions: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """urls: where its files are, in the order in which they are needed.  layout: under the data root.

    official: split -> counts.  sources: where `official` was read.
    """

    what: str
    urls: tuple[str, ...]
    licence: str
    layout: tuple[str, ...]
    official: Mapping[str, Counts] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


def _refcoco(folder: str, split_by: str, what: str, official: dict[str, Counts], *sources: str) -> Card:
    return Card(
        what=what,
        urls=("https://github.com/lichengunc/refer", _REFER[folder], _IMAGES_2014),
        licence=f"Apache-2.0 (https://github.com/lichengunc/refer); {_COCO_LICENCE}",
        layout=(
            f"refcoco/{folder}/refs({split_by}).p",
            f"refcoco/{folder}/instances.json",
            "train2014/COCO_train2014_*.jpg",
        ),
        official=official,
        sources=(_TFDS_REFCOCO, *sources),
    )


_PANOPTIC_FILES: Final = (
    "annotations/panoptic_{train,val}2017.json",
    "annotations/panoptic_{train,val}2017/*.png",
    "train2017/*.jpg",
    "val2017/*.jpg",
)
_PANOPTIC_URLS: Final = (
    "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",
    "http://images.cocodataset.org/zips/train2017.zip",
    "http://images.cocodataset.org/zips/val2017.zip",
)
CARDS: Final[dict[str, Card]] = {
    "refcoco": _refcoco(
        "refcoco",
        "unc",
        "Expressions that name one object of a COCO photo, from a game of two players; testA people, testB all else.",
        {
            "train": Counts(objects=42404, images=16994, expressions=120624),
            "val": Counts(objects=3811, images=1500, expressions=10834),
            "testA": Counts(objects=1975, images=750, expressions=5657),
            "testB": Counts(objects=1810, images=750, expressions=5095),
        },
        _FLAGEVAL,
    ),
    "refcoco+": _refcoco(
        "refcoco+",
        "unc",
        "As RefCOCO, without words for places: appearance alone. testA people, testB all else.",
        {
            "train": Counts(objects=42278, images=16992),
            "val": Counts(objects=3805, images=1500),
            "testA": Counts(objects=1975, images=750),
            "testB": Counts(objects=1798, images=750),
        },
    ),
    "refcocog": _refcoco(
        "refcocog",
        "umd",
        "Longer expressions of objects of COCO photos (8.4 words), in the umd split: no image in two splits.",
        {
            "train": Counts(objects=42226, images=21899),
            "val": Counts(objects=2573, images=1300),
            "test": Counts(objects=5023, images=2600),
        },
    ),
    "refcoco-google": _refcoco(
        "refcoco",
        "google",
        "RefCOCO in the google split: objects are split, not images, so train and test share images.",
        {
            "train": Counts(objects=40000, images=19213),
            "val": Counts(objects=5000, images=4559),
            "test": Counts(objects=5000, images=4527),
        },
    ),
    "refcocog-google": _refcoco(
        "refcocog",
        "google",
        "RefCOCOg in the google split: objects are split, not images, so train and val share images.",
        {"train": Counts(objects=44822, images=24698), "val": Counts(objects=5000, images=4650)},
    ),
    "png": Card(
        what="Panoptic narrative grounding: captions of COCO photos whose phrases name panoptic segments.",
        urls=("https://bcv-uniandes.github.io/panoptic-narrative-grounding", *_PANOPTIC_URLS),
        licence=f"see https://bcv-uniandes.github.io/panoptic-narrative-grounding; {_COCO_LICENCE}",
        layout=("png/png_coco_{train,val}2017.json", *_PANOPTIC_FILES),
    ),
    "coco-panoptic": Card(
        what="COCO panoptic 2017: every thing and stuff of a photo, named by its category.",
        urls=("https://cocodataset.org/#download", *_PANOPTIC_URLS),
        licence=_COCO_LICENCE,
        layout=_PANOPTIC_FILES,
        official={"train": Counts(images=118287), "val": Counts(images=5000)},
        sources=(_TFDS_PANOPTIC,),
    ),
    "reasonseg": Card(
        what="Questions that need reasoning about a photo, and the mask of the answer; short queries and long ones.",
        urls=(_LISA,),
        licence="none is stated with the data (https://github.com/dvlab-research/LISA)",
        layout=("reason_seg/ReasonSeg/{train,val,test}/*.jpg", "reason_seg/ReasonSeg/{train,val,test}/*.json"),
        official={"train": Counts(images=239), "val": Counts(images=200), "test": Counts(images=779)},
        sources=(_LISA,),
    ),
    "gcg": Card(
        what="GranD-f, grounded conversation generation: captions with a mask for every phrase in them.",
        urls=("https://huggingface.co/datasets/MBZUAI/GranD-f", _GLAMM),
        licence="Apache-2.0 (https://huggingface.co/datasets/MBZUAI/GranD-f); photos of SA-1B, COCO, Flickr30k",
        layout=(
            "GranDf/annotations/train/*.json",
            "GranDf/annotations/val_test/{val,test}_gcg_coco_{caption,mask}_gt.json",
            "GranDf_HA_images/{train,val_test}/*.jpg",
        ),
    ),
    **{
        name: Card(
            what=f"GranD-f's training captions {of}: a mask for every phrase.",
            urls=("https://huggingface.co/datasets/MBZUAI/GranD-f", url, _GLAMM),
            licence="Apache-2.0 (https://huggingface.co/datasets/MBZUAI/GranD-f); photos as their owners say",
            layout=(f"GranDf/annotations/train/{file}", images),
        )
        for name, of, file, images, url in (
            ("gcg-psg", "of Open-PSG", "OpenPsgGCG_train.json", "train2017/*.jpg", _PANOPTIC_URLS[1]),
            (
                *("gcg-flickr", "of Flickr30k", "flickr_mergedGT_GCG_train.json", "flikcr_30k/train/*.jpg"),
                "https://shannon.cs.illinois.edu/DenotationGraph/",
            ),
            ("gcg-refcocog", "of RefCOCOg", "RefCOCOg_GCG_train.json", "train2014/*.jpg", _IMAGES_2014),
        )
    },
    "scenes": Card(
        what="Coloured shapes on grass and water, rendered by this program in the formats of RefCOCO and PNG.",
        urls=(),
        licence="Apache-2.0, as the program",
        layout=("written by extract and manifest themselves",),
    ),
    "own": Card(
        what="Your photos and masks, a line each.",
        urls=("docs/your-data.md",),
        licence="yours",
        layout=("samples.jsonl", "the files it names"),
    ),
    "own-coco": Card(
        what="Your photos with annotations in COCO's format.",
        urls=("docs/your-data.md",),
        licence="yours",
        layout=("annotations/<split>.json", "images/…"),
    ),
}


def official_counts(dataset: str, split: str) -> dict[str, int] | None:
    """The published counts of a split by their names in `Counts`; None where there are none."""
    card = CARDS.get(dataset)
    counts = asdict(card.official[split]) if card and split in card.official else {}
    return {name: value for name, value in counts.items() if value is not None} or None


def differences(dataset: str, split: str, counted: Mapping[str, int]) -> list[str]:
    """A line for every count ("images", "objects", …) that is not the official one, with both numbers."""
    official = official_counts(dataset, split) or {}
    return [
        f"{dataset} {split}: {counted[name]:,} {name}, officially {expected:,}: are these the official files, and all?"
        for name, expected in official.items()
        if counted.get(name, expected) != expected
    ]
