"""Where an image lies in a model's square input, against the formulas of FACTS (F-LMM) in a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifests.errors import DatasetError
from stages.extract.images import centred_box, corner_box, open_image, pad_bottom_right, pad_to_square

sides = st.integers(1, 2000)


@given(sides, sides, st.sampled_from([96, 336]))
def test_centred_box_is_the_papers(width: int, height: int, size: int) -> None:
    box = centred_box(width, height, size)
    longest = max(width, height)
    expected = [size if side == longest else max(1, int(side * size / longest)) for side in (width, height)]
    assert [box.width, box.height] == expected
    assert (box.left, box.top) == ((size - expected[0]) // 2, (size - expected[1]) // 2)


@given(sides, sides, st.sampled_from([32, 64, 100]))
def test_scaled_boxes_stay_inside_and_keep_a_pixel(width: int, height: int, size: int) -> None:
    for box in (centred_box(width, height, 336).scaled(size), corner_box(width, height, 1024).scaled(size)):
        assert box.height >= 1 and box.width >= 1
        assert 0 <= box.top <= box.top + box.height <= size
        assert 0 <= box.left <= box.left + box.width <= size


def test_padding_has_the_mean_colour_and_the_image_is_where_the_box_says() -> None:
    image = Image.new("RGB", (200, 100), (10, 200, 30))
    square, box = pad_to_square(image, 96, (0.5, 0.25, 1.0))
    inside = np.zeros((96, 96), bool)
    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert inside.sum() == 96 * 48
    assert (square[inside] == (10, 200, 30)).all()
    assert (square[~inside] == (127, 63, 255)).all()


def test_sam_input_is_top_left() -> None:
    pixels, box = pad_bottom_right(Image.new("RGB", (100, 50)), 128)
    assert pixels.shape == (64, 128, 3)
    assert (box.top, box.left, box.height, box.width, box.size) == (0, 0, 64, 128, 128)


def test_broken_images_are_told_apart(tmp_path) -> None:
    good = tmp_path / "good.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(good)
    assert open_image(good, (64, 48)).size == (64, 48)
    with pytest.raises(DatasetError, match="64x48 pixels, its annotations are for 48x64"):
        open_image(good, (48, 64))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[:-400])
    with pytest.raises(DatasetError, match=r"cut\.jpg can not be decoded.*replace the file"):
        open_image(cut, (64, 48))
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(DatasetError, match="can not be decoded"):
        open_image(text, (64, 48))
    with pytest.raises(DatasetError, match="is missing"):
        open_image(tmp_path / "none.jpg", (64, 48))
    for path in (good, cut, text, tmp_path / "none.jpg", tmp_path):  # what a cache keeps may not name this machine
        with pytest.raises(DatasetError, match=r"^train/1\.jpg ") as caught:
            open_image(path, (48, 64) if path == good else (64, 48), name="train/1.jpg")
        assert str(tmp_path) not in str(caught.value)
