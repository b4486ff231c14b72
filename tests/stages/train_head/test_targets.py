"""Targets against a loop over the frame's pixels, each asking the image where its centre falls."""

from __future__ import annotations

import numpy as np
import pytest

from stages.extract.images import Box, centred_box, corner_box
from stages.train_head.targets import frame_targets


def plain(mask: np.ndarray, box: Box, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    top, left = int(box.top * size / box.size), int(box.left * size / box.size)
    rows, columns = int(box.height * size / box.size + 0.5), int(box.width * size / box.size + 0.5)
    target, valid = np.zeros((size, size), int), np.zeros((size, size), int)
    for y in range(rows):
        for x in range(columns):
            valid[top + y, left + x] = 1
            target[top + y, left + x] = mask[int((y + 0.5) * height / rows), int((x + 0.5) * width / columns)]
    return target, valid


@pytest.mark.parametrize(("height", "width"), [(144, 108), (108, 144), (97, 97), (20, 300), (11, 7)])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("place", [centred_box, corner_box])
def test_equals_a_loop_over_pixels(height: int, width: int, size: int, place) -> None:
    masks = np.random.default_rng(0).random((2, height, width)) > 0.5
    box = place(width, height, 128)
    targets = frame_targets([masks], [box], size)
    for k in range(2):
        target, valid = plain(masks[k], box, size)
        assert (targets.mask[k].numpy() == target).all()
        assert (targets.valid[k].numpy() == valid).all()


def test_samples_follow_each_other_and_may_be_empty() -> None:
    masks = [np.ones((2, 8, 16), bool), np.ones((0, 5, 5), bool), np.zeros((1, 16, 8), bool)]
    targets = frame_targets(masks, [centred_box(16, 8, 16), centred_box(5, 5, 16), centred_box(8, 16, 16)], 16)
    assert targets.mask.shape == (3, 16, 16)
    assert targets.mask.sum((1, 2)).tolist() == [128, 128, 0]
    assert targets.valid[0, 4:12].all()
    assert targets.valid[2, :, 4:12].all()
    assert targets.valid.sum((1, 2)).tolist() == [128, 128, 128]
    assert frame_targets([], [], 16).mask.shape == (0, 16, 16)
