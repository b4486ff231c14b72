"""Write rendered scenes to disk in official formats (RefCOCO, PNG, ReasonSeg, GCG), laid out as `manifests/build.py`.

    write_scenes("data/scenes")

All that is written is a function of (split, index): a larger config adds scenes, it does not change the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from manifests.errors import DatasetError
from manifests.scenes.conversations import GcgFiles, ReasonSegFiles
from manifests.scenes.official import PngFiles, RefcocoFiles, as_json, encoded, place
from manifests.scenes.world import SPLIT_SEEDS, make_scene, scene_seed

RECORD: Final = "scenes.json"
GENERATOR_VERSION: Final = 6  # to be raised whenever the same (split, index) gives other files; a test watches over it


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Where one split of the world's scenes goes. refcoco, png, …: the split there, None: not in that format.

    reasonseg and gcg take the first of the part's scenes (see `ScenesConfig`); their images are copies, byte for byte,
    so that one embedding serves both.
    """

    scenes: str
    count: str
    folder: str = "."
    refcoco: str | None = None
    png: str | None = None
    reasonseg: str | None = None
    gcg: str | None = None


_PARTS: Final = (
    _Part(scenes="train", count="train", refcoco="train", png="train"),
    _Part(scenes="val", count="val", refcoco="val"),
    _Part(scenes="testA", count="test_a", refcoco="testA", reasonseg="val"),
    _Part(scenes="testB", count="test_b", refcoco="testB", reasonseg="test"),
    _Part(scenes="narratives", count="narratives", png="val", gcg="val"),
    _Part(scenes="shifted", count="shifted", folder="shifted", refcoco="testA", png="val"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """How many images of each split; the defaults take about 20 s on one core."""

    train: int = 1000
    """Images with refs and a narrative each, to train heads on."""
    val: int = 120
    """Images of RefCOCO split val."""
    test_a: int = 150
    """Images of RefCOCO split testA."""
    test_b: int = 150
    """Images of RefCOCO split testB."""
    narratives: int = 200
    """Images of PNG split val."""
    shifted: int = 150
    """Images with held-out looks (`world.HELD_OUT_PAIRS`): RefCOCO testA and PNG val of the root `shifted`."""
    reasonseg_val: int = 60
    """Questions of ReasonSeg val, about the first images of testA; no more than there are."""
    reasonseg_test: int = 60
    """Questions of ReasonSeg test, about the first images of testB; no more than there are."""
    gcg_val: int = 60
    """Captions of GCG val, of the first images of PNG val; no more than there are."""
    jpeg_quality: int = 95
    """1 to 100; colour is not subsampled."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            top = 100 if name == "jpeg_quality" else 999_999
            if not 1 <= value <= top:
                raise DatasetError(f"{name} must lie in [1, {top}], got {value}")


def write_scenes(root: str | Path, config: ScenesConfig | None = None) -> None:
    """Write the scenes; nothing to do where they are there already.

    The folder appears complete or not at all. Raises DatasetError where `root` holds anything else: other files, scenes
    of another config or version, or metadata that was changed since.
    """
    root, config = Path(root).resolve(), config or ScenesConfig()
    if _is_written(root, config):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_all(temporary, config)
        temporary.chmod(0o755)
        try:
            temporary.rename(root)
        except OSError:  # another process was faster
            if not _is_written(root, config):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_written(root: Path, config: ScenesConfig) -> bool:
    """Does `root` hold these scenes? False: it is absent or an empty folder; DatasetError: it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        record = json.loads((root / RECORD).read_bytes())
        version, found, files = record["version"], record["config"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DatasetError(f"{root} is not empty and holds no scenes: give another folder for the scenes") from None
    if version != GENERATOR_VERSION or found != asdict(config):
        wanted = {"version": GENERATOR_VERSION, **asdict(config)}
        given = {"version": version, **found}
        diff = ", ".join(f"{k} {given.get(k)} there, {v} asked" for k, v in wanted.items() if given.get(k) != v)
        raise DatasetError(f"{root} holds other scenes ({diff}): delete the folder or give another one")
    for name, digest in files.items():
        if not (root / name).is_file() or _digest(root / name) != digest:
            raise DatasetError(f"{root / name} is missing or was changed: delete the folder {root} to write it anew")
    return True


def _write_all(root: Path, config: ScenesConfig) -> None:
    counts = asdict(config)
    refs = {part.folder: RefcocoFiles() for part in _PARTS}
    others: list[PngFiles | ReasonSegFiles | GcgFiles] = []
    with tqdm(total=sum(counts[part.count] for part in _PARTS), desc="scenes", unit="image") as progress:
        for part in _PARTS:
            others += _write_part(root / part.folder, part, counts, refs[part.folder], progress)
    written = [path for folder, files in refs.items() for path in files.save(root / folder / "refcoco" / "refcoco")]
    written += [path for files in others for path in files.save()]
    digests = {path.relative_to(root).as_posix(): _digest(path) for path in written}
    place(root / RECORD, as_json({"version": GENERATOR_VERSION, "config": counts, "files": digests}))


def _write_part(
    home: Path, part: _Part, counts: dict[str, int], refs: RefcocoFiles, progress: tqdm
) -> list[PngFiles | ReasonSegFiles | GcgFiles]:
    """Write a part's images, add its records to `refs` and to the files that are returned, all yet to be saved."""
    png = PngFiles(home=home, split=part.png) if part.png else None
    reasonseg = ReasonSegFiles(folder=home / "reason_seg/ReasonSeg" / part.reasonseg) if part.reasonseg else None
    gcg = GcgFiles(folder=home / "GranDf/annotations/val_test", split=part.gcg) if part.gcg else None
    for index in range(counts[part.count]):
        scene, seed = make_scene(part.scenes, index), scene_seed(part.scenes, index)
        image_id = list(SPLIT_SEEDS).index(part.scenes) * 1_000_000 + index + 1
        name = f"{image_id:012d}"
        jpeg = encoded(scene.image, "JPEG", quality=counts["jpeg_quality"], subsampling=0)
        if part.refcoco:
            refs.add(scene, image_id, part.refcoco, seed)
            place(home / "train2014" / f"COCO_train2014_{name}.jpg", jpeg)
        if png:
            png.add(scene, image_id, seed)
            place(home / f"{part.png}2017" / f"{name}.jpg", jpeg)
        if reasonseg and index < counts[f"reasonseg_{part.reasonseg}"]:
            reasonseg.add(scene, name, seed)
            place(reasonseg.folder / f"{name}.jpg", jpeg)
        if gcg and index < counts[f"gcg_{part.gcg}"]:
            gcg.add(scene, name, seed)
            place(home / "GranDf_HA_images/val_test" / f"{name}.jpg", jpeg)
        progress.update()
    return [files for files in (png, reasonseg, gcg) if files]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
