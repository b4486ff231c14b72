"""RefCOCO, RefCOCO+ and RefCOCOg in their official format: `refs(unc|umd|google).p` and `instances.json`.

A *ref* is one annotated object with several sentences that refer to it. Every ref of a split is kept; two refs of one
annotation are two objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from manifests.errors import DatasetError, NotThere
from manifests.files import by_id, check_record, check_size, read_json, records, shown
from manifests.masks import Rle, empty, from_segmentation
from manifests.pickles import load_plain
from manifests.schema import Object, Piece, Sample

Sentences = Literal["first", "all"]
MAX_SENTENCES: Final = 1000  # of a ref; pickles can say one sentence as often as they like in two bytes
Context = Literal["joined", "alone"]
SPLIT_BYS: Final = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
SOURCE: Final = (
    "get refcoco.zip, refcoco+.zip and refcocog.zip as https://github.com/lichengunc/refer says and COCO's "
    "train2014 images from https://cocodataset.org; layout: refcoco/<dataset>/{instances.json, refs(<split by>).p}, "
    "train2014/*.jpg"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ref:
    """A checked record of `refs(*).p` with the records of `instances.json` that it points to."""

    ref_id: int
    sentences: tuple[str, ...]
    image: dict[str, Any]
    annotation: dict[str, Any]
    category: str

    def sentence(self, k: int) -> str:
        """Sentence k, again from the first where the ref has fewer; "" where it has none."""
        return self.sentences[k % len(self.sentences)] if self.sentences else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Naming:
    """What all samples of one read share."""

    dataset: str
    split_by: str
    split: str
    image_dir: str

    @property
    def prefix(self) -> str:
        """What the ids of the two splits of one dataset differ in: "refcoco-unc", "refcoco-google"."""
        ending = f"-{self.split_by}"
        return self.dataset.removesuffix(ending) + ending


def read_refcoco(
    root: str | Path,
    dataset: str,
    split_by: str,
    split: str,
    *,
    sentences: Sentences = "first",
    context: Context = "joined",
    image_dir: str = "train2014",
    annotation_dir: str | Path = "refcoco",
    dataset_name: str | None = None,
) -> Iterator[Sample]:
    """The samples of one split, in the order of the refs file.

    context "joined": one sample per image: each ref's sentence, then ".", … as F-LMM does; "alone": one per ref.
    sentences "first": each ref's first one; "all": joined sample k takes each ref's sentence k (a ref with fewer starts
    again), alone every sentence is a sample.
    dataset: refcoco | refcoco+ | refcocog.  split_by: see `SPLIT_BYS`.  image_dir: relative to `root`.
    annotation_dir: holds <dataset>/instances.json; relative to `root`, or absolute.  dataset_name: `Sample.dataset`.

    Files are read and checked here, masks are made while iterating. A broken mask is its sample's `error`. Raises
    DatasetError for a missing file, an unknown split, a record of another format and a ref whose annotation or image
    `instances.json` does not have.
    """
    if sentences not in get_args(Sentences) or context not in get_args(Context):
        raise DatasetError(f"sentences is first or all, context joined or alone; got {sentences!r} and {context!r}")
    if split_by not in SPLIT_BYS.get(dataset, ()):
        known = "; ".join(f"{name}: {', '.join(bys)}" for name, bys in SPLIT_BYS.items())
        raise DatasetError(f"there is no {dataset!r} split by {split_by!r}; there are {known}")
    folder = Path(root) / annotation_dir / dataset
    refs = _read_refs(folder / f"refs({split_by}).p", folder / "instances.json", split)
    naming = _Naming(dataset=dataset_name or dataset, split_by=split_by, split=split, image_dir=image_dir)
    groups = _by_image(refs) if context == "joined" else [[ref] for ref in refs]
    return _samples(groups, naming, context, sentences)


def image_paths(
    root: str | Path,
    dataset: str,
    split_by: str,
    split: str,
    *,
    image_dir: str = "train2014",
    annotation_dir: str | Path = "refcoco",
) -> Iterator[str]:
    """The images of a split, relative to `root`, each once, as `read_refcoco` names them; no mask is made.

    Raises NotThere for a missing file and a split that is not in it, DatasetError for a file of another format.
    """
    folder = Path(root) / annotation_dir / dataset
    refs, instances = folder / f"refs({split_by}).p", folder / "instances.json"
    changed = tuple(path.stat().st_mtime_ns for path in (refs, instances) if path.is_file())
    by_split = _images_by_split(refs, instances, changed)
    if split not in by_split:
        raise NotThere(f"{refs} has no split {split!r}; it has {', '.join(by_split)}")
    yield from (f"{image_dir}/{name}" for name in by_split[split])


@lru_cache(maxsize=16)
def _images_by_split(refs: Path, instances: Path, _changed: tuple[int, ...]) -> dict[str, list[str]]:
    """The file names of every split; the two files take seconds to read, and every split asks for them."""
    rows = _all_refs(refs)
    content = read_json(instances, dict, SOURCE)
    images = by_id(records(content, "images", instances), {"id": int, "file_name": str}, f"{instances}: images")
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        check_record(row, {"split": str, "image_id": int}, f"{refs}: ref")
        if row["image_id"] not in images:
            raise DatasetError(f"{refs} names image {row['image_id']}, which {instances} does not have: {SOURCE}")
        found.setdefault(row["split"], {})[images[row["image_id"]]["file_name"]] = None
    return {split: list(names) for split, names in found.items()}


def _samples(groups: list[list[_Ref]], naming: _Naming, context: Context, sentences: Sentences) -> Iterator[Sample]:
    """One sample per group of refs of one image and number of sentence."""
    for group in groups:
        masks = [_mask(ref, naming) for ref in group]
        objects = [_object(ref, mask, naming) for ref, (mask, _) in zip(group, masks, strict=True)]
        error = next((fault for _, fault in masks if fault), None)
        rounds = max(1, *(len(ref.sentences) for ref in group)) if sentences == "all" else 1
        key = f"{group[0].image['id']}-joined" if context == "joined" else f"ref{group[0].ref_id}"
        for k in range(rounds):
            yield _sample(f"{key}-{k}", group, objects, error, k, naming)


def _sample(
    key: str, refs: list[_Ref], objects: list[dict[str, Any]], error: str | None, k: int, naming: _Naming
) -> Sample:
    image = refs[0].image
    texts = [ref.sentence(k) for ref in refs]
    return Sample(
        sample_id=f"{naming.prefix}/{naming.split}/{key}",
        dataset=naming.dataset,
        split=naming.split,
        task="referring",
        image_id=str(image["id"]),
        image_path=f"{naming.image_dir}/{image['file_name']}",
        height=image["height"],
        width=image["width"],
        pieces=tuple(piece for i, text in enumerate(texts) for piece in (Piece(text=text, object=i), Piece(text="."))),
        objects=tuple(Object(**known, phrase=text) for known, text in zip(objects, texts, strict=True)),
        error=error,
    )


def _object(ref: _Ref, mask: Rle, naming: _Naming) -> dict[str, Any]:
    """All fields of a ref's object but the phrase, which differs between samples."""
    return {
        "object_id": f"{naming.prefix}/ref{ref.ref_id}",
        "mask": mask,
        "is_thing": True,
        "plural": False,
        "category": ref.category,
    }


def _mask(ref: _Ref, naming: _Naming) -> tuple[Rle, str | None]:
    """The mask; where it is broken, one without pixels and what is wrong."""
    height, width = ref.image["height"], ref.image["width"]
    try:
        return from_segmentation(ref.annotation.get("segmentation"), height, width), None
    except ValueError as error:
        where = f"{naming.prefix}/ref{ref.ref_id}: annotation {ref.annotation['id']}"
        cure = "correct it in instances.json, or download the file again"
        return empty(height, width), f"{where} has a broken mask ({error}): {cure}"


def _by_image(refs: list[_Ref]) -> list[list[_Ref]]:
    groups: dict[int, list[_Ref]] = {}
    for ref in refs:
        groups.setdefault(ref.image["id"], []).append(ref)
    return list(groups.values())


def _read_refs(refs_path: Path, instances_path: Path, split: str) -> list[_Ref]:
    """The refs of a split. Raises DatasetError with the file and record that is wrong."""
    rows = _all_refs(refs_path)
    wanted = [row for row in rows if row["split"] == split]
    _refuse_twins(wanted, refs_path)
    if not wanted:
        known = sorted({shown(row["split"]).strip("'") for row in rows})[:10]
        raise DatasetError(f"{refs_path} has no split {split!r}; it has {', '.join(known) or 'no refs at all'}")
    instances = read_json(instances_path, dict, SOURCE)
    tables = {
        key: by_id(records(instances, key, instances_path), fields, f"{instances_path}: {key}")
        for key, fields in (
            ("images", {"id": int, "file_name": str, "height": int, "width": int}),
            ("annotations", {"id": int, "image_id": int, "category_id": int}),
            ("categories", {"id": int, "name": str}),
        )
    }
    return [_ref(row, tables, refs_path, instances_path) for row in wanted]


def _all_refs(path: Path) -> list[dict[str, Any]]:
    """The records of a refs file, each with a split; DatasetError where it is missing or anything else."""
    if not path.is_file():
        raise NotThere(f"{path} is missing: {SOURCE}")
    rows = load_plain(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "split" in row for row in rows):
        raise DatasetError(f"{path} is not a list of refs with a split each: {SOURCE}")
    return rows


def _ref(row: dict[str, Any], tables: dict[str, dict[int, dict[str, Any]]], refs: Path, instances: Path) -> _Ref:
    if len(row["sentences"]) > MAX_SENTENCES:
        raise DatasetError(f"{refs}: ref {row['ref_id']} has more than {MAX_SENTENCES} sentences: {SOURCE}")
    for sentence in row["sentences"]:
        check_record(sentence, {"sent": str}, f"{refs}: ref {row['ref_id']}, sentence")
    annotation = tables["annotations"].get(row["ann_id"])
    image = tables["images"].get(row["image_id"])
    where = f"{refs}: ref {row['ref_id']}"
    if annotation is None:
        raise DatasetError(f"{where} names annotation {row['ann_id']}, which {instances} does not have: {SOURCE}")
    if image is None or annotation["image_id"] != row["image_id"]:
        raise DatasetError(
            f"{where} names image {row['image_id']}, {instances} "
            + ("does not have it" if image is None else f"has its annotation on image {annotation['image_id']}")
            + f": {SOURCE}"
        )
    check_size(image["height"], image["width"], f"{instances}: image {image['id']}")
    return _Ref(
        ref_id=row["ref_id"],
        sentences=tuple(sentence["sent"].strip().lower() for sentence in row["sentences"]),
        image=image,
        annotation=annotation,
        category=tables["categories"].get(annotation["category_id"], {}).get("name", ""),
    )


def _refuse_twins(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Raises DatasetError, also for rows that are no refs."""
    seen: set[int] = set()
    for row in rows:
        check_record(row, {"ref_id": int, "ann_id": int, "image_id": int, "sentences": list}, f"{path}: ref")
        if row["ref_id"] in seen:
            raise DatasetError(f"{path} holds ref {row['ref_id']} twice; ref ids must be unique: download it again")
        seen.add(row["ref_id"])
