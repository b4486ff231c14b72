"""From a dataset's name and its files to the list of samples.

`LAYOUT` says where the files lie under the data root; only what the chosen dataset needs has to be there.

    samples = build("scenes", "data/scenes", splits=("val",), limit=16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Final

from manifests import gcg, gcg_train, own, own_coco, panoptic, png, reasonseg, refcoco
from manifests.errors import DatasetError
from manifests.files import leading_out, shown
from manifests.own import read_own
from manifests.own_coco import read_own_coco
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
samples.jsonl                                     your own photos and masks: see docs/your-data.md
annotations/<split>.json and images/…             the same as plain COCO (own-coco)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One split of one dataset.

    read: opens and checks the files, then yields its samples.  images: the paths of its images, relative to the data
    root, each once; it makes no masks.  files: what must be under the data root, a folder with "/" at its end.
    read and images raise DatasetError.
    """

    dataset: str
    split: str
    read: Callable[[], Iterator[Sample]]
    images: Callable[[], Iterator[str]]
    files: tuple[str, ...]
    cure: str = "put the images under the data root"


# A reader of one name: (data root, sentences, context) -> the splits it has, in the order of the manifest.
Reader = Callable[[Path, Sentences, Context], list[Source]]


def _refcoco(dataset: str, split_by: str, splits: tuple[str, ...], name: str | None = None, folder: str = "") -> Reader:
    """RefCOCO's format below `folder` of the data root."""

    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        places = {"image_dir": f"{folder}train2014", "annotation_dir": f"{folder}refcoco"}
        texts = {"sentences": sentences, "context": context}
        read: Callable[..., Iterator[Sample]] = partial(read_refcoco, root, dataset, split_by)
        annotations = f"{folder}refcoco/{dataset}"
        return [
            Source(
                dataset=name or dataset,
                split=split,
                read=partial(read, split, dataset_name=name, **places, **texts),
                images=partial(refcoco.image_paths, root, dataset, split_by, split, **places),
                files=(f"{annotations}/refs({split_by}).p", f"{annotations}/instances.json", f"{folder}train2014/"),
                cure=refcoco.SOURCE,
            )
            for split in splits
        ]

    return sources


def _png(splits: tuple[str, ...], name: str = "png", folder: str = "") -> Reader:
    """PNG's format below `folder` of the data root."""

    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        def source(split: str) -> Source:
            truth = f"{folder}annotations/panoptic_{split}2017"
            places = {
                "narratives": f"{folder}png/png_coco_{split}2017.json",
                "panoptic": f"{truth}.json",
                "image_dir": f"{folder}{split}2017",
            }
            return Source(
                dataset=name,
                split=split,
                read=partial(read_png, root, split, dataset_name=name, panoptic_dir=truth, **places),
                images=partial(png.image_paths, root, split, **places),
                files=(places["narratives"], places["panoptic"], f"{truth}/", f"{places['image_dir']}/"),
                cure=png.SOURCE,
            )

        return [source(split) for split in splits]

    return sources


def _panoptic(root: Path, sentences: Sentences, context: Context) -> list[Source]:
    return [
        Source(
            dataset="coco-panoptic",
            split=split,
            read=partial(panoptic.read_panoptic, root, split),
            images=partial(panoptic.image_paths, root, split),
            files=(f"annotations/panoptic_{split}2017.json", f"annotations/panoptic_{split}2017/", f"{split}2017/"),
            cure=panoptic.SOURCE,
        )
        for split in panoptic.SPLITS
    ]


def _reasonseg(splits: tuple[str, ...], name: str = "reasonseg", ending: str = reasonseg.BRIEFLY) -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        return [
            Source(
                dataset=name,
                split=split,
                read=partial(
                    reasonseg.read_reasonseg, root, split, sentences=sentences, ending=ending, dataset_name=name
                ),
                images=partial(reasonseg.image_paths, root, split),
                files=(f"reason_seg/ReasonSeg/{split}/",),
                cure=reasonseg.SOURCE,
            )
            for split in splits
        ]

    return sources


def _gcg(splits: tuple[str, ...], name: str = "gcg", prompt: str = gcg.QUESTION) -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        folder = "GranDf/annotations/val_test"
        return [
            Source(
                dataset=name,
                split=split,
                read=partial(gcg.read_gcg, root, split, prompt=prompt, dataset_name=name),
                images=partial(gcg.image_paths, root, split),
                files=(
                    *(f"{folder}/{split}_gcg_coco_{x}_gt.json" for x in ("caption", "mask")),
                    "GranDf_HA_images/val_test/",
                ),
                cure=gcg.SOURCE,
            )
            for split in splits
        ]

    return sources


def _gcg_train(part: str, name: str) -> Reader:
    def sources(root: Path, sentences: Sentences, context: Context) -> list[Source]:
        file, images = gcg_train.PARTS[part]
        return [
            Source(
                dataset=name,
                split=gcg_train.SPLIT,
                read=partial(gcg_train.read_gcg_train, root, part, dataset_name=name),
                images=partial(gcg_train.image_paths, root, part),
                files=(f"{gcg_train.ANNOTATIONS}/{file}", f"{images}/"),
                cure=gcg.SOURCE,
            )
        ]

    return sources


def _own(root: Path, sentences: Sentences, context: Context) -> list[Source]:
    every = cache(partial(read_own, root))  # one file holds all splits

    def read(split: str) -> Iterator[Sample]:
        return (sample for sample in every() if sample.split == split)

    return [
        Source(
            dataset="own",
            split=split,
            read=partial(read, split),
            images=partial(own.image_paths, root, split),
            files=(own.FILE,),
        )
        for split in own.split_names(root)
    ]


def _own_coco(root: Path, sentences: Sentences, context: Context) -> list[Source]:
    return [
        Source(
            dataset=own_coco.NAME,
            split=split,
            read=partial(read_own_coco, root, split, context=context),
            images=partial(own_coco.image_paths, root, split),
            files=(f"annotations/{split}.json", "images/"),
            cure=own_coco.SOURCE,
        )
        for split in own_coco.split_names(root)
    ]


_TESTS: Final = ("train", "val", "testA", "testB")
_SCENES: Final[dict[str, Reader]] = {
    "scenes-refcoco": _refcoco("refcoco", "unc", _TESTS, "scenes-refcoco"),
    "scenes-png": _png(("train", "val"), "scenes-png"),
    "shifted-refcoco": _refcoco("refcoco", "unc", ("testA",), "shifted-refcoco", "shifted/"),
    "shifted-png": _png(("val",), "shifted-png", "shifted/"),
    "scenes-reasonseg": _reasonseg(
        ("val", "test"), "scenes-reasonseg", ""
    ),  # the tiny LMM has learned the question alone
    "scenes-gcg": _gcg(("val",), "scenes-gcg", DEFAULT_PROMPT),  # a prompt that the tiny LMM has learned
}
DATASETS: Final[dict[str, tuple[Reader, ...]]] = {
    "scenes": tuple(_SCENES.values()),
    **{name: (reader,) for name, reader in _SCENES.items()},
    "refcoco": (_refcoco("refcoco", "unc", _TESTS),),
    "refcoco+": (_refcoco("refcoco+", "unc", _TESTS),),
    "refcocog": (_refcoco("refcocog", "umd", ("train", "val", "test")),),
    "refcoco-google": (_refcoco("refcoco", "google", ("train", "val", "test"), "refcoco-google"),),
    "refcocog-google": (_refcoco("refcocog", "google", ("train", "val"), "refcocog-google"),),
    "png": (_png(("train", "val")),),
    "coco-panoptic": (_panoptic,),
    "reasonseg": (_reasonseg(reasonseg.SPLITS),),
    "gcg": (_gcg_train("human", "gcg"), _gcg(gcg.SPLITS)),
    "gcg-psg": (_gcg_train("psg", "gcg-psg"),),
    "gcg-flickr": (_gcg_train("flickr", "gcg-flickr"),),
    "gcg-refcocog": (_gcg_train("refcocog", "gcg-refcocog"),),
    "own": (_own,),
    own_coco.NAME: (_own_coco,),
}
_TAKEN: Final = {  # which of the options of texts change what is read; all other datasets have their texts one way
    **dict.fromkeys(("scenes", "scenes-refcoco", "shifted-refcoco"), ("sentences", "context")),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog", "refcoco-google", "refcocog-google"), ("sentences", "context")),
    **dict.fromkeys(("reasonseg", "scenes-reasonseg"), ("sentences",)),
    own_coco.NAME: ("context",),
}


def build(
    dataset: str,
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    sentences: Sentences = "first",
    context: Context = "joined",
    limit: int | None = None,
    keep: Callable[[Sample], bool] = lambda sample: True,
) -> list[Sample]:
    """The samples of the chosen splits of a dataset, in a fixed order.

    dataset: a name of `DATASETS`.  splits: None takes all.  sentences, context: how RefCOCO's sentences become texts,
    see `read_refcoco`; sentences also which of ReasonSeg's questions are asked, context also how own-coco is read.
    limit: the first N samples of every (dataset, split).
    keep: says which samples are wanted (`manifests.overlap.Decontamination`); others do not count for the limit.

    Raises DatasetError for an unknown name or split, for an option that the dataset does not take, for data that is
    missing or broken, for an image that is a link out of the root, and where not one of a split's images is there
    (single missing images are left to the extraction, which lists them).
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1 sample per split, got {limit}")
    chosen = sources_of(dataset, root, splits=splits, sentences=sentences, context=context)
    return [sample for source in chosen for sample in take(source, Path(root), limit, keep)]


def sources_of(
    dataset: str,
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    sentences: Sentences = "first",
    context: Context = "joined",
) -> list[Source]:
    """The chosen splits of a dataset, nothing of them read yet (but the own formats' files, which name the splits).

    Raises DatasetError as `build` does for names and options.
    """
    if dataset not in DATASETS:
        raise DatasetError(f"there is no dataset {dataset!r}; there are {', '.join(DATASETS)}")
    for option, given, usual in (("sentences", sentences, "first"), ("context", context, "joined")):
        if given != usual and option not in _TAKEN.get(dataset, ()):
            raise DatasetError(f"--{option} {given}: the texts of {dataset} are what they are, leave --{option} out")
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"the data root {root} is not a folder: give the folder that holds the data")
    sources = [source for reader in DATASETS[dataset] for source in reader(root, sentences, context)]
    known = list(dict.fromkeys(source.split for source in sources))
    if unknown := [split for split in splits or () if split not in known]:
        raise DatasetError(f"{dataset} has no split {', '.join(unknown)}; it has {', '.join(known)}")
    return [source for source in sources if splits is None or source.split in splits]


def take(
    source: Source,
    root: Path,
    limit: int | None = None,
    keep: Callable[[Sample], bool] = lambda sample: True,
    *,
    images: bool = True,
) -> list[Sample]:
    """The samples of one split: the first `limit` of those that `keep` wants. Raises DatasetError as `build` does.

    images=False: they need not be there.
    """
    samples = list(islice(filter(keep, source.read()), limit))
    if name := leading_out(root, (sample.image_path for sample in samples)):
        raise DatasetError(
            f"{source.dataset} {source.split}: {shown(name)} is a link that leads out of the data root {root}: copy "
            "the file there, or make its first folder the link"
        )
    if images and samples and not any((root / sample.image_path).is_file() for sample in samples):
        raise DatasetError(
            f"none of the {len(samples)} images of {source.dataset} {source.split} is there, the first would be "
            f"{root / samples[0].image_path}: {source.cure}"
        )
    return samples
