"""IoU against COCO's own API on random masks, and the conventions for empty ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from stages.evaluate.metrics import intersection_union, iou

_SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
_PAIRS = _SIZES.flatmap(lambda size: st.tuples(arrays(bool, size), arrays(bool, size)))


@settings(max_examples=200, deadline=None)
@given(_PAIRS)
def test_iou_equals_cocos(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = (coco.encode(np.asfortranarray(mask, np.uint8)) for mask in pair)
    both, either = intersection_union(*pair)
    assert both == coco.area(coco.merge([first, second], intersect=True))
    assert either == coco.area(coco.merge([first, second]))
    if either > 0:  # COCO says 0 for two empty masks
        assert iou(both, either) == coco.iou([first], [second], [0])[0, 0]


def test_a_stack_is_measured_mask_by_mask() -> None:
    predictions, truths = np.random.default_rng(0).random((2, 5, 7, 6)) < 0.4
    both, either = intersection_union(predictions, truths)
    assert both.dtype == either.dtype == np.int64
    for k in range(5):
        assert both[k] == sum(p and t for p, t in zip(predictions[k].flat, truths[k].flat, strict=True))
        assert either[k] == sum(p or t for p, t in zip(predictions[k].flat, truths[k].flat, strict=True))


@pytest.mark.parametrize(("predicted", "true", "expected"), [(0, 1, 0.0), (1, 0, 0.0), (0, 0, 1.0), (1, 1, 1.0)])
def test_empty_masks(predicted: int, true: int, expected: float) -> None:
    prediction, truth = np.full((3, 4), bool(predicted)), np.full((3, 4), bool(true))
    assert iou(*intersection_union(prediction, truth)) == expected


def test_masks_of_another_frame_or_kind_are_refused() -> None:
    mask = np.zeros((3, 4), bool)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        intersection_union(mask, mask.T)
    with pytest.raises(TypeError, match="float64"):
        intersection_union(mask, mask.astype(np.float64))
