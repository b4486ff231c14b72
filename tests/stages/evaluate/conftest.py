"""Factories for hand-made results and cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stages.evaluate.pictures import Case
from stages.evaluate.results import ObjectResult

_WHAT: dict[str, Any] = {
    "sample": 0,
    "number": 0,
    "task": "referring",
    "group": "",
    "pixels": 640 * 480,
    "sample_id": "s0",
    "dataset": "refcoco",
    "split": "val",
    "image_id": "i0",
    "phrase": "the ring",
    "is_thing": True,
    "plural": False,
}


@pytest.fixture
def make_object() -> Callable[..., ObjectResult]:
    """make(intersection, union, area, **changes): the coarse mask is as good as the refined one unless told."""

    def make(intersection: int, union: int, area: int, **changes: Any) -> ObjectResult:
        counts = {"intersection": intersection, "union": union}
        coarse = {"coarse_intersection": intersection, "coarse_union": union}
        return ObjectResult(**(_WHAT | {"area": area} | counts | coarse | changes))

    return make


@pytest.fixture
def make_missed() -> Callable[..., ObjectResult]:
    """make(area, **changes): an object of a failed sample."""
    return lambda area, **changes: ObjectResult.missed(**(_WHAT | {"area": area} | changes))


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """make(height, width, **changes): a case with a square as its truth, shifted in the refined mask."""

    def make(height: int = 36, width: int = 48, **changes: Any) -> Case:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        truth, refined = np.zeros((2, height, width), bool)
        truth[8:24, 10:26] = refined[10:26, 10:26] = True
        given = {"image": image, "truth": truth, "refined": refined, "caption": "the small ring", "iou": 7 / 9}
        return Case(**(given | changes))

    return make
