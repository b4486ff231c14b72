"""Masks as COCO compressed run lengths (RLE), on pycocotools.

An `Rle` is {"size": [height, width], "counts": str}: the lengths of alternating runs of 0 and 1 (0 first) over the
pixels in column-major order, each length in base 32 characters. pycocotools reads `counts` in C without checking its
end, so text from a file is checked here first (`run_lengths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypedDict

import numpy as np
from pycocotools import mask as coco

from manifests.pictures import size_fault

_LONGEST_OUTLINE: Final = 1 << 22  # pixels; pycocotools works through every one of them, several times


class Rle(TypedDict):
    """size: [height, width] in pixels; counts: COCO compressed run lengths, ASCII."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """The RLE of a mask [h, w]; a pixel counts where it is true or non-zero."""
    return _rle(coco.encode(np.asfortranarray(np.asarray(mask).astype(bool), dtype=np.uint8)))


def decode(rle: Rle) -> np.ndarray:
    """bool [h, w]. Raises ValueError where `counts` is not a sound RLE of `size`."""
    run_lengths(rle)
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def area(rle: Rle) -> int:
    """Pixels of the mask. Raises ValueError where `counts` is not a sound RLE of `size`."""
    return int(run_lengths(rle)[1::2].sum())


def union(rles: Sequence[Rle]) -> Rle:
    """The pixels of any of the masks: at least one, all of one size. Raises ValueError otherwise."""
    if not rles or any(list(rle["size"]) != list(rles[0]["size"]) for rle in rles):
        raise ValueError(f"a union needs masks of one size, got sizes {[list(rle['size']) for rle in rles]}")
    for rle in rles:
        run_lengths(rle)
    return _rle(coco.merge([{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]))


def empty(height: int, width: int) -> Rle:
    """The mask without pixels."""
    return _rle(coco.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width))


def run_lengths(rle: Rle) -> np.ndarray:
    """int64 lengths of the runs, 0 first. Raises ValueError where they are broken or do not add up to h · w.

    A length is written as groups of 5 bits, lowest first, in characters from 48; bit 5 says that more follow, bit 4 of
    the last group is the sign. From the fourth on, the difference to the length before the last is written.
    """
    height, width = rle["size"]
    if fault := size_fault(height, width):
        raise ValueError(f"not a compressed RLE: it {fault}")
    text = rle["counts"].encode("ascii") if rle["counts"].isascii() else b""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"not a compressed RLE of {height}x{width} pixels: broken size or counts")
    last = (codes & 32) == 0
    starts = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    place = np.arange(codes.size) - np.repeat(starts, np.diff(np.append(starts, codes.size)))
    if place.max() > 6:  # 7 groups hold 35 bits, more than pycocotools' 32-bit counts
        raise ValueError("not a compressed RLE: a run length has more than 32 bits")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    if values.min() < 0 or values.max() > height * width or values.sum() != height * width:
        raise ValueError(f"run lengths cover {values.sum()} pixels, the size {height}x{width} has {height * width}")
    return values


def from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """The RLE of COCO's `segmentation` field for an image of height × width pixels.

    segmentation: a list of polygons [x0, y0, x1, y1, …] (pixels; x to the right, y down; the mask is their union), or
    {"size": [h, w], "counts": …} with counts a list of run lengths or their compressed text. Polygons of fewer than
    three points hold no pixel. Raises ValueError for anything else.
    """
    if isinstance(segmentation, dict):
        return _from_rle(segmentation)
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is a list of polygons or an RLE, not {type(segmentation).__name__}")
    polygons = [_polygon(points, height, width) for points in segmentation]
    polygons = [points for points in polygons if len(points) >= 6]
    if not polygons:
        return empty(height, width)
    if (outline := sum(map(_outline, polygons))) > _LONGEST_OUTLINE:
        raise ValueError(f"its outlines are {outline:.3g} pixels long, at most {_LONGEST_OUTLINE:,}")
    return _rle(coco.merge(coco.frPyObjects(polygons, height, width)))


def _from_rle(segmentation: dict[str, Any]) -> Rle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError("an RLE's size is [height, width]")
    if fault := size_fault(*size):
        raise ValueError(f"an RLE's size {fault}")
    if isinstance(counts, list):
        sound = all(type(n) is int and n >= 0 for n in counts) and sum(counts) == size[0] * size[1]
        if not sound:
            raise ValueError(f"an RLE's counts are lengths >= 0 that add up to {size[0]}x{size[1]} pixels")
        return _rle(coco.frPyObjects({"size": size, "counts": counts}, *size))
    if not isinstance(counts, str | bytes):
        raise ValueError(f"an RLE's counts are a list or text, not {type(counts).__name__}")
    rle = Rle(size=list(size), counts=counts.decode("latin-1") if isinstance(counts, bytes) else counts)
    run_lengths(rle)
    return rle


def _polygon(points: Any, height: int, width: int) -> list[float]:
    """Checked points: the C code works through every pixel along an edge, so far-away points would cost minutes."""
    if not isinstance(points, list) or len(points) % 2 or any(type(n) not in (int, float) for n in points):
        raise ValueError("a polygon is a list of numbers x0, y0, x1, y1, …")
    reach = 2 * max(height, width)
    if not all(-reach <= n <= 2 * reach for n in points):
        raise ValueError(f"a polygon's points lie far outside the image of {height}x{width} pixels")
    return points


def _outline(points: list[float]) -> float:
    """Length of a polygon's outline, the longer of dx and dy for every edge; points: [x0, y0, x1, y1, …]."""
    corners = np.array(points, float).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, 0)).max(1).sum())


def _rle(raw: dict[str, Any]) -> Rle:
    return Rle(size=[int(n) for n in raw["size"]], counts=raw["counts"].decode("ascii"))
