"""Do real photographs go through? The commands on two COCO photos with their panoptic truth, and on a user's own files.

    python -m benchmarks.photos --coco panopticapi/sample_data

`--coco` is the folder of that name in https://github.com/cocodataset/panopticapi; the narratives were written by hand
(tests/data). A head trained on rendered scenes says nothing useful about photos: the numbers claim no quality.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tyro
from PIL import Image

from manifests.masks import decode
from manifests.png import read_png
from pipeline.cli import main as run_pipeline

NARRATIVES: Final = Path(__file__).parent.parent / "tests" / "data" / "panoptic_narratives.json"


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    coco: Path
    """The folder `sample_data` of panopticapi: input_images, panoptic_examples and panoptic_examples.json."""
    head: Path = Path("runs/head")
    """A head that `train-head` made."""
    out: Path = Path("runs/photos")
    """Data, caches and results; must not exist yet."""
    quick: bool = False
    """The same: two photos are quick."""


def as_coco(source: Path, root: Path) -> None:
    """The two photos in PNG's official layout."""
    for folder in ("png", "annotations", "val2017"):
        (root / folder).mkdir(parents=True)
    shutil.copy(NARRATIVES, root / "png" / "png_coco_val2017.json")
    shutil.copy(source / "panoptic_examples.json", root / "annotations" / "panoptic_val2017.json")
    shutil.copytree(source / "panoptic_examples", root / "annotations" / "panoptic_val2017")
    for photo in sorted((source / "input_images").glob("*.jpg")):
        shutil.copy(photo, root / "val2017")


def as_own(coco: Path, root: Path) -> None:
    """The same photos as somebody's own: a photo, a mask file per phrase, one line of samples.jsonl each."""
    root.mkdir(parents=True)
    lines = []
    for sample in read_png(coco, "val"):
        photo = f"{sample.image_id}.jpg"
        shutil.copy(coco / sample.image_path, root / photo)
        pieces: list[dict[str, Any]] = []
        for piece in sample.pieces:
            pieces.append({"text": piece.text})
            if piece.object is not None:
                described = sample.objects[piece.object]
                mask = f"{sample.image_id}_{piece.object}.png"
                Image.fromarray(decode(described.mask).astype("uint8") * 255).save(root / mask)
                pieces[-1] |= {"mask": mask, "plural": described.plural, "is_thing": described.is_thing}
        lines.append(json.dumps({"image": photo, "pieces": pieces, "task": "narrative"}))
    (root / "samples.jsonl").write_text("\n".join(lines) + "\n")


def run(name: str, data: Path, options: list[str], config: Config) -> dict[str, Any]:
    """extract and evaluate; returns metrics.json."""
    cache, out = config.out / f"{name}_cache", config.out / f"{name}_evaluation"
    for command in (
        ["extract", *options, "--data-root", str(data), "--cache", str(cache), "--local"],
        ["evaluate", "--cache", str(cache), "--head", str(config.head), "--out", str(out)],
    ):
        if code := run_pipeline(command):
            raise SystemExit(code)
    return json.loads((out / "metrics.json").read_text()) | {"sheet": str(out / "sheet.png")}


def main(config: Config) -> dict[str, Any]:
    if not (config.coco / "panoptic_examples.json").is_file():
        raise SystemExit(f"--coco {config.coco}: panoptic_examples.json is not there; give panopticapi's sample_data")
    if config.out.exists():
        raise SystemExit(f"--out {config.out} is there already: delete it or give another folder")
    coco, own = config.out / "coco", config.out / "own"
    as_coco(config.coco, coco)
    as_own(coco, own)
    metrics = {
        "coco": run("coco", coco, ["--dataset", "png", "--splits", "val"], config),
        "own": run("own", own, ["--dataset", "own"], config),
    }
    result = {
        name: {
            "images": recall["images"],
            "failed_samples": len(m["failures"]),
            "objects": recall["items"],
            "png_all": recall["value"]["value"],
            "sheet": m["sheet"],
        }
        for name, m in metrics.items()
        for recall in (next(r for r in m["results"] if r["metric"] == "average_recall" and r["group"] == "all"),)
    } | {"quality_claim": False}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
