"""Intersection, union and IoU of bool masks, and what they are where a mask is empty."""

from __future__ import annotations

import numpy as np


def intersection_union(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both masks and pixels in either.

    prediction, truth: bool [..., height, width], the same shape, in pixels of the original image.
    Returns two int64 [...]. Raises ValueError where the shapes differ (a mask of another frame is never resized
    in silence) and TypeError where a mask is not bool (logits must be thresholded by who made them).
    """
    if prediction.shape != truth.shape or prediction.ndim < 2:
        raise ValueError(f"masks must have one shape [..., height, width], got {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise TypeError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")
    both = np.count_nonzero(prediction & truth, axis=(-2, -1))
    either = np.count_nonzero(prediction | truth, axis=(-2, -1))
    return np.asarray(both, np.int64), np.asarray(either, np.int64)


def iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """float64 IoU of integer counts of one shape.

    Empty prediction or empty truth, the other not: 0. Both empty: 1, as ReasonSeg's gIoU counts it (COCO's API says 0).
    RES and PNG never see the last case: their manifests hold no object without pixels.
    """
    intersection, union = np.asarray(intersection, np.float64), np.asarray(union, np.float64)
    return np.divide(intersection, union, out=np.ones_like(union), where=union > 0)
