"""Polygons against plain loops, against OpenCV's own pixels (their digest), and near Pillow's."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from manifests.polygons import OUTLINE, draw_polygon

POINTS = st.lists(st.tuples(st.integers(-6, 22), st.integers(-6, 18)), min_size=1, max_size=7)


def plain(points: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """Pixel by pixel: is an odd number of edges right of it (a ray to the left), or does an edge's line step on it?"""
    edges = list(zip(points, points[1:] + points[:1], strict=True))
    mask = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            left_of_it = 0
            for (x0, y0), (x1, y1) in edges:
                if (y0 <= y) != (y1 <= y):
                    # crossing at x0 + (y - y0) (x1 - x0) / (y1 - y0); compared without a division
                    left_of_it += (x - x0) * abs(y1 - y0) >= (y - y0) * (x1 - x0) * (1 if y1 > y0 else -1)
            mask[y, x] = left_of_it % 2
    for (x0, y0), (x1, y1) in edges:
        (x0, y0), (x1, y1) = sorted([(x0, y0), (x1, y1)], key=lambda p: p[0])
        steps = max(x1 - x0, abs(y1 - y0))
        for k in range(steps + 1):
            at = [a + k * (b - a) / max(steps, 1) for a, b in ((x0, x1), (y0, y1))]
            # the nearest pixel; a half goes towards the start
            x, y = (
                int(np.ceil(v - 0.5)) if b >= a else int(np.floor(v + 0.5))
                for v, a, b in zip(at, (x0, y0), (x1, y1), strict=True)
            )
            if 0 <= x < width and 0 <= y < height:
                mask[y, x] = True
    return mask


@settings(max_examples=300, deadline=None)
@given(POINTS)
def test_as_a_plain_loop_has_it(points: list[tuple[int, int]]) -> None:
    assert np.array_equal(draw_polygon(points, 12, 16), plain(points, 12, 16))


def random_polygon(rng: random.Random) -> tuple[int, int, list[tuple[float, float]]]:
    height, width = rng.randrange(20, 200), rng.randrange(20, 200)
    count = rng.choice((1, 2, 3, 4, 5, 8, 20, 60))
    return height, width, [(rng.uniform(0, width - 1), rng.uniform(0, height - 1)) for _ in range(count)]


def test_every_pixel_is_opencvs() -> None:
    """The digest is of what OpenCV 5.0.0 drew: polylines(…, True, 1, 1), then fillPoly, points as int32."""
    digest, rng = hashlib.sha256(), random.Random("opencv")
    for _ in range(200):
        height, width, points = random_polygon(rng)
        digest.update(draw_polygon(points, height, width).astype(np.uint8).tobytes())
    assert digest.hexdigest()[:32] == "7868c075d8f9cc066bbdeb95945d40b7"


def test_pillow_differs_at_the_outline_alone() -> None:
    rng = random.Random(1)
    for _ in range(40):
        height, width, points = random_polygon(rng)
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).polygon([(int(x), int(y)) for x, y in points] * (1 + (len(points) == 1)), 1, 1)
        outline = Image.new("L", (width, height))
        corners = [(int(x), int(y)) for x, y in points]
        ImageDraw.Draw(outline).line(corners + corners[:1], 1, width=3)
        differ = draw_polygon(points, height, width) != (np.asarray(image) > 0)
        assert not (differ & (np.asarray(outline) == 0)).any()


def test_fractions_are_cut_off_towards_zero() -> None:
    assert np.array_equal(
        draw_polygon([(1.9, 1.9), (5.99, 1), (3, 4.5)], 8, 8), draw_polygon([(1, 1), (5, 1), (3, 4)], 8, 8)
    )
    assert draw_polygon([(-0.9, -0.9)], 2, 2).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    "points, words",
    [([], "without points"), ([(0, 0), (OUTLINE, 0)], "more than"), ([(0, 0)] * (OUTLINE + 1), "more than")],
)
def test_nothing_and_endless_outlines_are_refused(points: list[tuple[float, float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw_polygon(points, 8, 8)
