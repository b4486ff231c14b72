"""`run_pipeline.py manifest overlap`: the images that every two splits of all datasets share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.manifest import Manifest


def run_overlap(args: Manifest) -> None:
    """Print the matrix, and as JSON: `splits` (dataset, split, images), `shared` (rows in that order).

    `absent`: what is not there, and why; `broken`: what is there and can not be read.
    """
    from tqdm import tqdm

    from manifests.errors import DatasetError
    from manifests.overlap import found_images
    from pipeline.samples import ready_root

    roots = [ready_root(args), *args.more_roots]
    for root in roots:
        if not root.is_dir():
            raise DatasetError(f"the data root {root} is not a folder: give the folder that holds the data")
    found = found_images(roots, lambda names: tqdm(names, desc="looking for images", unit="dataset", leave=False))
    shared = found.shared()
    names = [f"{dataset} {split}" for dataset, split in found.images]
    wide = max(map(len, names), default=0)
    print("images that two splits share (an image: COCO's id, else its path)")
    print(" " * (wide + 5) + "".join(f"{f'({number})':>9}" for number in range(1, len(names) + 1)))
    for number, (name, row) in enumerate(zip(names, shared, strict=True), start=1):
        print(f"{f'({number})':>4} {name:<{wide}}" + "".join(f"{count:>9,}" if count else f"{'.':>9}" for count in row))
    for label, why in found.absent.items():
        print(f"not there: {label}: {why[:160]}")
    for label, why in found.broken.items():
        print(f"warning: {label} can not be read: {why}")
    splits = [
        {"dataset": dataset, "split": split, "images": len(keys)} for (dataset, split), keys in found.images.items()
    ]
    print(json.dumps({"splits": splits, "shared": shared, "absent": found.absent, "broken": found.broken}))
