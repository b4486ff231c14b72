"""From a dataset's name and its files to the list of samples.

`LAYOUT` says where the files lie under the data root; only what the chosen dataset needs has to be there.

    samples = build("scenes", "data/scenes", splits=("val",), limit=16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from manifests import gcg, gcg_train, panoptic, png, reasonseg, refcoco
from manifests.errors import DatasetError
from manifests.own import read_own
from manifests.png import read_png
from manifests.refcoco import Context, Sentences, read_refcoco
from manifests.schema import DEFAULT_PROMPT, Sample

LAYOUT: Final = """\
refcoco/{refcoco,refcoco+,refcocog}/{instances.json, refs(unc).p, refs(umd).p, refs(google).p}
train2014/COCO_train2014_*.jpg                    COCO 2014, for RefCOCO/+/g
png/png_coco_{train,val}2017.json                 panoptic narrative grounding
annotations/panoptic_{train,val}2017.json and annotations/panoptic_{train,val}2017/*.png
train2017/*.jpg, val2017/*.jpg                    COCO 2017, for PNG
annotations/panoptic_*, train2017, val2017        also COCO panoptic: each segment under its category's name
reason_seg/ReasonSeg/{train,val,test}/*.{jpg,json}   ReasonSeg
GranDf/annotations/val_test/{val,test}_gcg_coco_{caption,mask}_gt.json, GranDf_HA_images/val_test/*.jpg
GranDf/annotations/train/{GranDf_HA_GCG,OpenPsgGCG,flickr_mergedGT_GCG,RefCOCOg_GCG}_train.json
GranDf_HA_images/train/*.jpg, train2017/*.jpg, flikcr_30k/train/*.jpg, train2014/*.jpg       in the same order
shifted/…                                         RefCOCO and PNG once more (generated scenes only)
samples.jsonl                                     your own photos and masks: see manifests/own.py
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One split of one dataset. read: opens and checks the files, then yields its samples."""

    dataset: str
    split: str
    read: Callable[[], Iterator[Sample]]
    cure: str = "put the images under the data root"


# A reader of one name: (data root, sentences, context) -> the splits it has, in the order of the manifest.
Reader = Callable[[Path, Sentences, Context], list[Source]]


def _refcoco(dataset: str, split_by: str, splits: tuple[str, ...], name: str | None = None, folder: str = "") -> Reader:
    """RefCOCO's format below `folder` of the data root."""

    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        read = partial(
            read_refcoco,
            root,
            dataset,
            split_by,
            sentences=sentences,
            context=context,
            image_dir=f"{folder}train2014",
            annotation_dir=f"{folder}refcoco",
            dataset_name=name,
        )
        return [Source(dataset=name or dataset, split=s, read=partial(read, s), cure=refcoco.SOURCE) for s in splits]

    return sources


def _png(splits: tuple[str, ...], name: str = "png", folder: str = "") -> Reader:
    """PNG's format below `folder` of the data root."""

    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        def read(split: str) -> Iterator[Sample]:
            return read_png(
                root,
                split,
                narratives=f"{folder}png/png_coco_{split}2017.json",
                panoptic=f"{folder}annotations/panoptic_{split}2017.json",
                panoptic_dir=f"{folder}annotations/panoptic_{split}2017",
                image_dir=f"{folder}{split}2017",
                dataset_name=name,
            )

        return [Source(dataset=name, split=split, read=partial(read, split), cure=png.SOURCE) for split in splits]

    return sources


def _panoptic(root: Path, sentences: Sentences, context: Context) -> list[Source]:
    return [
        Source(dataset="coco-panoptic", split=s, read=partial(panoptic.read_panoptic, root, s), cure=panoptic.SOURCE)
        for s in panoptic.SPLITS
    ]


def _reasonseg(splits: tuple[str, ...], name: str = "reasonseg") -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        read = partial(reasonseg.read_reasonseg, root, sentences=sentences, dataset_name=name)
        return [Source(dataset=name, split=s, read=partial(read, s), cure=reasonseg.SOURCE) for s in splits]

    return sources


def _gcg(splits: tuple[str, ...], name: str = "gcg", prompt: str = gcg.QUESTION) -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        read = partial(gcg.read_gcg, root, prompt=prompt, dataset_name=name)
        return [Source(dataset=name, split=s, read=partial(read, s), cure=gcg.SOURCE) for s in splits]

    return sources


def _gcg_train(part: str, name: str) -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        read = partial(gcg_train.read_gcg_train, root, part, dataset_name=name)
        return [Source(dataset=name, split=gcg_train.SPLIT, read=read, cure=gcg.SOURCE)]

    return sources


def _own(root: Path, sentences: Sentences, context: Context) -> list[Source]:
    by_split: dict[str, list[Sample]] = {}
    for sample in read_own(root):
        by_split.setdefault(sample.split, []).append(sample)
    return [Source(dataset="own", split=split, read=partial(iter, found)) for split, found in by_split.items()]


_TESTS: Final = ("train", "val", "testA", "testB")
_SCENES: Final[dict[str, Reader]] = {
    "scenes-refcoco": _refcoco("refcoco", "unc", _TESTS, "scenes-refcoco"),
    "scenes-png": _png(("train", "val"), "scenes-png"),
    "shifted-refcoco": _refcoco("refcoco", "unc", ("testA",), "shifted-refcoco", "shifted/"),
    "shifted-png": _png(("val",), "shifted-png", "shifted/"),
    "scenes-reasonseg": _reasonseg(("val", "test"), "scenes-reasonseg"),
    "scenes-gcg": _gcg(("val",), "scenes-gcg", DEFAULT_PROMPT),  # a prompt that the tiny LMM has learned
}
DATASETS: Final[dict[str, tuple[Reader, ...]]] = {
    "scenes": tuple(_SCENES.values()),
    **{name: (reader,) for name, reader in _SCENES.items()},
    "refcoco": (_refcoco("refcoco", "unc", _TESTS),),
    "refcoco+": (_refcoco("refcoco+", "unc", _TESTS),),
    "refcocog": (_refcoco("refcocog", "umd", ("train", "val", "test")),),
    "refcoco-google": (_refcoco("refcoco", "google", ("train", "val", "test")),),
    "refcocog-google": (_refcoco("refcocog", "google", ("train", "val")),),
    "png": (_png(("train", "val")),),
    "coco-panoptic": (_panoptic,),
    "reasonseg": (_reasonseg(reasonseg.SPLITS),),
    "gcg": (_gcg_train("human", "gcg"), _gcg(gcg.SPLITS)),
    "gcg-psg": (_gcg_train("psg", "gcg-psg"),),
    "gcg-flickr": (_gcg_train("flickr", "gcg-flickr"),),
    "gcg-refcocog": (_gcg_train("refcocog", "gcg-refcocog"),),
    "own": (_own,),
}


def build(
    dataset: str,
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    sentences: Sentences = "first",
    context: Context = "joined",
    limit: int | None = None,
) -> list[Sample]:
    """The samples of the chosen splits of a dataset, in a fixed order.

    dataset: a name of `DATASETS`.  splits: None takes all.  sentences, context: how RefCOCO's sentences become texts,
    see `read_refcoco`; sentences also which of ReasonSeg's questions are asked.
    limit: the first N samples of every (dataset, split).

    Raises DatasetError for an unknown name or split, for data that is missing or broken, and where not one of a split's
    images is there (single missing images are left to the extraction, which lists them).
    """
    if dataset not in DATASETS:
        raise DatasetError(f"there is no dataset {dataset!r}; there are {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1 sample per split, got {limit}")
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"the data root {root} is not a folder: give the folder that holds the data")
    sources = [source for reader in DATASETS[dataset] for source in reader(root, sentences, context)]
    known = list(dict.fromkeys(source.split for source in sources))
    if unknown := [split for split in splits or () if split not in known]:
        raise DatasetError(f"{dataset} has no split {', '.join(unknown)}; it has {', '.join(known)}")
    chosen = [source for source in sources if splits is None or source.split in splits]
    return [sample for source in chosen for sample in _take(source, root, limit)]


def _take(source: Source, root: Path, limit: int | None) -> list[Sample]:
    samples = list(islice(source.read(), limit))
    if samples and not any((root / sample.image_path).is_file() for sample in samples):
        raise DatasetError(
            f"none of the {len(samples)} images of {source.dataset} {source.split} is there, the first would be "
            f"{root / samples[0].image_path}: {source.cure}"
        )
    return samples
