"""`run_pipeline.py manifest`: what a dataset holds, what extracting it would take, and what datasets share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from manifests.errors import DatasetError, PipelineError
from pipeline.samples import decontamination, manifest_meta, ready_root

if TYPE_CHECKING:
    from manifests.schema import Sample


@dataclass(kw_only=True, slots=True)
class Manifest:
    """build: write a dataset's manifest.   info: count a dataset, or a manifest file.   overlap: shared images.

    build and info print samples, images, expressions, objects, tokens, gigabytes that extraction would write, and the
    official numbers. The last line is JSON (bytes).
    """

    action: Annotated[Literal["build", "info", "overlap"], tyro.conf.Positional]
    dataset: str = "scenes"
    """scenes, refcoco, refcoco+, refcocog, refcoco-google, refcocog-google, png, coco-panoptic,
    reasonseg, gcg (and gcg-psg, gcg-flickr, gcg-refcocog to train on), own, own-coco."""
    data_root: Path | None = None
    """Folder that holds the data (layout: manifests/build.py); default: data/scenes for scenes."""
    more_roots: tuple[Path, ...] = ()
    """overlap: further folders with datasets to look at."""
    splits: tuple[str, ...] | None = None
    """Only these splits."""
    limit: int | None = None
    """Only the first N samples of every split."""
    sentences: Literal["first", "all"] = "first"
    """RefCOCO: which sentences of an object become samples; ReasonSeg: which questions of an image."""
    context: Literal["joined", "alone"] = "joined"
    """RefCOCO, own-coco: an image's expressions in one text, or each alone."""
    decontaminate: bool = False
    """Leave out training samples whose image is in an evaluation split of any dataset under --data-root."""
    lmm: str = "tiny"
    """Whose tokens and bytes are counted: a preset (see `lmms`), a folder, or a Hugging Face id; needs no weights."""
    file: Path | None = None
    """build: where to write it (default manifest.parquet); info: a manifest to look at."""


def run_manifest(args: Manifest) -> None:
    """Run the action; the last line printed is one JSON object."""
    from manifests.manifest import Samples
    from pipeline.manifest_counts import Counter, print_counts
    from pipeline.overlap import run_overlap

    if args.limit is not None and args.limit < 1:
        raise PipelineError("--limit must be at least 1")
    if args.action == "overlap":
        run_overlap(args)
        return
    unread: list[str] = []
    if args.action == "info" and args.file:
        known = Samples(args.file)
        result: dict[str, Any] = {}
        counter = Counter(args.lmm, known.meta, args.data_root)
        counter.add(list(known))
    else:
        samples, meta, result = _read(args)
        unread = result["unread"] if not samples else []
        counter = Counter(args.lmm, meta, ready_root(args))
        counter.add(samples)
    print_counts(counter)
    print(json.dumps(counter.result() | result))
    if unread:
        raise DatasetError(unread[0])


def _read(args: Manifest) -> tuple[list[Sample], dict[str, Any], dict[str, Any]]:
    """Samples, the manifest's meta, and JSON. build writes the manifest; info goes on where files are missing."""
    from manifests.build import sources_of, take
    from manifests.manifest import is_manifest, write_manifest
    from manifests.overlap import missing_files

    path = args.file or Path("manifest.parquet")
    if args.action == "build" and path.exists() and not is_manifest(path):
        raise PipelineError(f"{path} is there and is no manifest: give another --file, or remove it")
    root = ready_root(args)
    sources = sources_of(args.dataset, root, splits=args.splits, sentences=args.sentences, context=args.context)
    if missing := sorted({name for source in sources for name in missing_files(source, root, images=True)}):
        _print_missing(args.dataset, root, missing)
        if args.action == "build":
            raise DatasetError(f"{len(missing)} files or folders are missing under {root}, the first is {missing[0]}")
    without = decontamination(args, root)
    keep: dict[str, Any] = {"keep": without.keep} if without else {}
    samples, unread = [], []
    for source in sources:
        try:
            samples += take(source, root, args.limit, images=args.action == "build", **keep)
        except DatasetError as error:
            if args.action == "build":
                raise
            unread.append(str(error))
            print(f"can not be read: {source.dataset} {source.split}: {error}")
    if without:
        print("\n".join(without.lines()))
    meta = manifest_meta(args, without)
    if args.action == "build":
        write_manifest(path, samples, meta)
        print(f"wrote {path}")
    return samples, meta, {"missing": missing, "unread": unread, "decontaminated": meta.get("decontaminated")}


def _print_missing(dataset: str, root: Path, missing: Sequence[str]) -> None:
    from manifests.cards import CARDS

    print(f"missing under {root}:")
    print("\n".join(f"  {name}" for name in missing))
    if card := CARDS.get(dataset):
        print(f"{card.what}\n  licence: {card.licence}")
        print("\n".join(f"  get it from {url}" for url in card.urls))
        print("\n".join(f"  layout: {name}" for name in card.layout))
