"""Masks against pycocotools called directly, and against a decoder written out here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from manifests.masks import Rle, area, decode, empty, encode, from_segmentation, run_lengths, union

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


def plain_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs in column-major order, one pixel at a time."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(MASKS)
def test_encode_is_what_pycocotools_decodes(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == list(mask.shape)
    assert np.array_equal(coco.decode(rle), mask)
    assert np.array_equal(decode(rle), mask) and decode(rle).dtype == bool
    assert run_lengths(rle).tolist() == plain_runs(mask)
    assert area(rle) == mask.sum() == coco.area(rle)


def test_run_lengths_of_a_large_sparse_mask() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[[5, 1000, 1999], [0, 1500, 2999]] = True
    assert run_lengths(encode(mask)).tolist() == plain_runs(mask)


def test_encode_takes_any_non_zero_value() -> None:
    assert area(encode(np.array([[0, 1, 255, 256]]))) == 3


@given(MASKS, st.data())
def test_union(mask: np.ndarray, data: st.DataObject) -> None:
    other = data.draw(arrays(bool, mask.shape))
    assert np.array_equal(decode(union([encode(mask), encode(other)])), mask | other)


def test_union_refuses_other_sizes_and_nothing() -> None:
    with pytest.raises(ValueError, match="one size"):
        union([empty(2, 3), empty(3, 2)])
    with pytest.raises(ValueError, match="one size"):
        union([])


@pytest.mark.parametrize("counts", ["", "o", "0", "d", "?", "é1", "~~~", "1111", "ooooooooo1", "0" * 50, "\x00", "P1"])
def test_broken_counts_never_reach_the_c_code(counts: str) -> None:
    rle = Rle(size=[4, 3], counts=counts)
    for use in (decode, area, run_lengths):
        with pytest.raises(ValueError, match=r"RLE|run lengths"):
            use(rle)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_any_text_decodes_as_pycocotools_does_or_is_refused(counts: str) -> None:
    rle = Rle(size=[5, 7], counts=counts)
    try:
        runs = run_lengths(rle)
    except ValueError:
        return
    pixels = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(7, 5).T
    assert np.array_equal(coco.decode(rle), pixels)


def test_segmentation_formats_agree() -> None:
    square = np.zeros((6, 8), bool)
    square[1:4, 2:7] = True
    polygon = [2, 1, 7, 1, 7, 4, 2, 4]
    runs = plain_runs(square)
    for segmentation in (
        [polygon],
        [polygon, [3, 3]],  # a polygon of one point holds no pixel
        {"size": [6, 8], "counts": runs},
        {"size": [6, 8], "counts": encode(square)["counts"]},
        {"size": [6, 8], "counts": encode(square)["counts"].encode()},
    ):
        assert np.array_equal(decode(from_segmentation(segmentation, 6, 8)), square)
    assert area(from_segmentation([], 6, 8)) == 0
    assert area(from_segmentation([[1, 1, 4, 4]], 6, 8)) == 0  # a line; pycocotools alone would take it for a box
    two = from_segmentation([polygon, [0, 5, 8, 5, 8, 6, 0, 6]], 6, 8)
    assert area(two) == 15 + 8


@pytest.mark.parametrize(
    "segmentation, why",
    [
        (None, "list of polygons or an RLE"),
        ("abc", "list of polygons or an RLE"),
        ([[1, 2, 3]], "x0, y0"),
        ([[1, 2, 3, 4, 5, "6"]], "x0, y0"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside"),
        ([[0, 0, float("nan"), 0, 3, 3]], "far outside"),
        ({"size": [6], "counts": [48]}, "size"),
        ({"size": [6, 8], "counts": [40]}, "add up"),
        ({"size": [6, 8], "counts": [-1, 49]}, "add up"),
        ({"size": [6, 8], "counts": "zz"}, "RLE"),
        ({"size": [6, 8]}, "list or text"),
    ],
)
def test_broken_segmentations_are_refused(segmentation: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_segmentation(segmentation, 6, 8)
