"""Scenes with questions about an object and prompts for a caption, as ReasonSeg's and GCG's readers give them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from manifests.masks import encode
from manifests.scenes.language import narrative
from manifests.scenes.world import make_scene
from manifests.schema import Object, Piece, Sample


def questions(root: Path, count: int) -> list[Sample]:
    """By turns a question ("test"), a prompt for a caption ("val"), and a caption to train on; an image each."""
    root.mkdir(parents=True, exist_ok=True)
    return [_sample(root, index) for index in range(count)]


def _sample(root: Path, index: int) -> Sample:
    scene, path = make_scene("val", index), f"{index}.png"
    Image.fromarray(scene.image).save(root / path)
    named = [s for s in narrative(scene, random.Random(index)) if s.text]
    grounded = [s for s in named if s.things or s.stuff]
    reasoning = index % 3 == 0
    objects = []
    for number, segment in enumerate(grounded[:1] if reasoning else grounded):
        masks = [*map(scene.thing_mask, segment.things), *map(scene.stuff_mask, segment.stuff)]
        objects.append(
            Object(
                object_id=f"{index}-{number}",
                mask=encode(np.logical_or.reduce(masks)),
                is_thing=bool(segment.things),
                plural=segment.plural,
                category="",
                phrase=segment.text,
            )
        )
    numbers = iter(range(len(grounded)))
    pieces = [Piece(text=s.text, object=next(numbers) if s.things or s.stuff else None) for s in named]
    return Sample(
        sample_id=f"sample-{index}",
        dataset="scenes-reasonseg" if reasoning else "scenes-gcg",
        split=("test", "val", "train")[index % 3],
        task="reasoning" if reasoning else "conversation",
        image_id=str(index),
        image_path=path,
        height=scene.height,
        width=scene.width,
        pieces=() if reasoning else tuple(pieces),
        objects=tuple(objects),
        group="short" if reasoning else "",
    )
