"""Which images the splits of all datasets under a data root share; a training list without those that are tested on.

    found = found_images([root])
    found.images["refcoco", "val"] & found.images["png", "train"]
    without = Decontamination(root)
    samples = build("png", root, splits=["train"], keep=without.keep)

RefCOCO's training split holds images of RefCOCOg's val and test (and the reverse), and PNG's and COCO panoptic's train,
which is COCO's train2017, holds all images of RefCOCO's val and tests.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from manifests import own_coco
from manifests.build import DATASETS, Source, sources_of
from manifests.errors import DatasetError, NotThere
from manifests.files import shown
from manifests.schema import Sample

Split = tuple[str, str]
"""(name in DATASETS, split)"""
_COCO: Final = re.compile(r"(?:.*/)?(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.(?:jpg|jpeg|png)", re.IGNORECASE)
_SA1B: Final = re.compile(r"(?:.*/)?sa_(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_TRAINING: Final = re.compile(r"(?:.*_)?train(?:20\d\d)?", re.IGNORECASE)
_SCENES: Final = "scenes.json"


def image_key(root: str | Path, path: str) -> str:
    """What two paths of one image have in common, whatever dataset names it.

    COCO's images go by their id, twelve digits of the file name: train2014/COCO_train2014_000000000123.jpg and
    val2017/000000000123.jpg are the same image. So do SA-1B's (sa_123.jpg). Every other image is its path under its
    data root: two copies of one file under different names are two images. Only hashing the content would tell, and
    that needs every image of every dataset on disk and read; this needs their annotations only.
    """
    path = posixpath.normpath(path)  # ./a//b.jpg is a/b.jpg
    if match := _COCO.fullmatch(path):
        return f"coco/{int(match[1])}"
    if match := _SA1B.fullmatch(path):
        return f"sa1b/{int(match[1])}"
    return f"{Path(root).absolute()}/{path}"


def is_training(split: str) -> bool:
    """Is this split trained on? train, and names of files that say so (train2017, instances_train); no other is."""
    return _TRAINING.fullmatch(split) is not None


@dataclass(kw_only=True, slots=True)
class Found:
    """images: `image_key` of every image of the splits that are there.  absent: dataset or split -> why it is not.

    broken: dataset or split -> why its files, which are there, can not be read.
    """

    images: dict[Split, set[str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def note(self, label: str, error: DatasetError, missing: dict[str, str]) -> None:
        """Keep why a dataset or split can not be looked at: in `missing` where it is not there, else in `broken`."""
        (missing if isinstance(error, NotThere) else self.broken).setdefault(label, str(error))

    def shared(self) -> list[list[int]]:
        """How many images every pair of splits shares, in the order of `images`; on the diagonal how many there are."""
        return [[len(a & b) for b in self.images.values()] for a in self.images.values()]


def found_images(
    roots: Sequence[str | Path], progress: Callable[[list[str]], Iterable[str]] = lambda names: names
) -> Found:
    """The images of all datasets whose files are under the roots, from their annotations alone.

    progress: shows the names of `DATASETS` as they are gone through.
    """
    found = Found()
    names = [name for name in DATASETS if name != "scenes"]  # which is all the scenes-… and shifted-… together
    for name in progress(names):
        reasons: dict[str, str] = {}
        for root in map(Path, roots):
            if name.startswith(("scenes", "shifted")) != (root / _SCENES).is_file():
                continue  # generated scenes lie in the official layout, and would be found under both names
            try:
                sources = sources_of(name, root)
            except DatasetError as error:
                found.note(name, error, reasons)
                continue
            for source in sources:
                try:
                    found.images.setdefault((name, source.split), set()).update(_keys(source, root))
                except DatasetError as error:
                    found.note(f"{name} {source.split}", error, reasons)
        found.images = {split: keys for split, keys in found.images.items() if keys}
        here = {f"{dataset} {split}" for dataset, split in found.images}
        found.absent |= {label: why for label, why in reasons.items() if label not in here}
    return found


def _keys(source: Source, root: Path) -> set[str]:
    if missing := missing_files(source, root):
        raise NotThere(f"{root / missing[0]} is missing")
    return {image_key(root, path) for path in source.images()}


def missing_files(source: Source, root: Path, *, images: bool = False) -> list[str]:
    """Those of `source.files` that are not there. images: also folders of images, which annotations do without.

    The plain COCO format always wants its folder: else COCO's own annotations/ would be taken for a user's.
    """
    wanted = [name for name in source.files if images or not name.endswith("/") or source.dataset == own_coco.NAME]
    return [name for name in wanted if not ((root / name).is_dir() if name.endswith("/") else (root / name).is_file())]


class Decontamination:
    """Which samples to keep: all but training samples whose image is in an evaluation split of a dataset that is there.

    `keep` counts what it drops: `report`, `lines`. Raises DatasetError for a root that is no folder, and where files
    are there that say what is evaluated on and can not be read.
    """

    def __init__(self, root: str | Path, progress: Callable[[list[str]], Iterable[str]] = lambda names: names) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"the data root {root} is not a folder: give the folder that holds the data")
        self.found = found_images([root], progress)
        for label, why in self.found.broken.items():
            if _evaluates(label):
                raise DatasetError(f"can not decontaminate: {label} is there and can not be looked at: {why}")
        self.evaluated = {split: keys for split, keys in self.found.images.items() if not is_training(split[1])}
        self._every = set[str]().union(*self.evaluated.values())
        self._dropped: Counter[str] = Counter()  # samples of each image

    def keep(self, sample: Sample) -> bool:
        """Is this sample evaluated on, or of an image that no evaluation uses?"""
        if not is_training(sample.split):
            return True
        key = image_key(self.root, sample.image_path)
        if key not in self._every:
            return True
        self._dropped[key] += 1
        return False

    def report(self) -> dict[str, Any]:
        """JSON: samples and images dropped, and because of which splits; an image may be in several."""
        because = [
            {"dataset": dataset, "split": split, **self._counts(keys)}
            for (dataset, split), keys in self.evaluated.items()
            if keys & self._dropped.keys()
        ]
        return {**self._counts(self._dropped.keys()), "because": because}

    def lines(self) -> list[str]:
        """The same for the terminal, and what could not be looked at."""
        report = self.report()
        lines = [f"decontaminated: dropped {report['samples']:,} training samples of {report['images']:,} images"]
        lines += [
            f"  {each['samples']:,} of {each['images']:,} images are in {each['dataset']} {each['split']}"
            for each in report["because"]
        ]
        looked = ", ".join(f"{dataset} {split}" for dataset, split in self.evaluated)
        lines.append(f"  looked at {looked or 'no evaluation split'}")
        if absent := [label for label in self.found.absent if _evaluates(label)]:
            lines.append(f"  not there to be looked at: {', '.join(map(_plain, absent))}")
        return lines

    def _counts(self, keys: Iterable[str]) -> dict[str, int]:
        dropped = [self._dropped[key] for key in keys if key in self._dropped]
        return {"samples": sum(dropped), "images": len(dropped)}


def _evaluates(label: str) -> bool:
    """Is this, "dataset split" or a dataset whose splits are not known, evaluated on?"""
    return not is_training(label.partition(" ")[2])


def _plain(label: str) -> str:
    return label if label.isprintable() and len(label) < 100 else shown(label)
