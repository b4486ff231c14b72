"""Where an image lies in a model's square input, against the formulas of FACTS (F-LMM) in a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifests.errors import DatasetError
from stages.extract.images import Box, centred_box, corner_box, open_image, pad_bottom_right, pad_to_square
from stages.train_head.heads.base import crop_resize

sides = st.integers(1, 2000)


@given(sides, sides, st.sampled_from([96, 336]))
def test_centred_box_is_the_papers(width: int, height: int, size: int) -> None:
    box = centred_box(width, height, size)
    longest = max(width, height)
    expected = [size if side == longest else max(1, int(side * size / longest)) for side in (width, height)]
    assert [box.width, box.height] == expected
    assert (box.left, box.top) == ((size - expected[0]) // 2, (size - expected[1]) // 2)


SHAPES = [
    (640, 480),
    (480, 640),
    (333, 333),
    (640, 427),
    (1, 2000),
    (2000, 1),
    (3, 1000),
    (337, 336),
    (20, 16),
    (336, 336),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_padded_square_is_the_papers_pixel_for_pixel(shape: tuple[int, int]) -> None:
    """From FACTS' words: longest side to 336, the other one `int(w * 336 / h)`, bicubic; centred on the mean colour."""
    width, height = shape
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    mean = (0.48145466, 0.4578275, 0.40821073)
    square, box = pad_to_square(image, 336, mean)
    wide = width > height
    new = (336, max(1, int(height * 336 / width))) if wide else (max(1, int(width * 336 / height)), 336)
    expected = Image.new("RGB", (336, 336), tuple(int(m * 255) for m in mean))
    expected.paste(image.resize(new, Image.Resampling.BICUBIC), ((336 - new[0]) // 2, (336 - new[1]) // 2))
    assert np.array_equal(square, np.asarray(expected))
    assert (box.width, box.height) == new


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [24, 64, 256, 336])
def test_a_prediction_is_cropped_back_with_the_papers_rounding(shape: tuple[int, int], side: int) -> None:
    """A mask drawn in the square comes back as the slice that F-LMM takes of it, at the image's size."""
    width, height = shape
    longest = max(shape)
    new_width, new_height = (max(1, int(n * 336 / longest)) for n in shape)
    left, top = (336 - new_width) // 2, (336 - new_height) // 2
    rows = slice(int(top * side / 336), int(top * side / 336) + max(1, int(new_height * side / 336 + 0.5)))
    columns = slice(int(left * side / 336), int(left * side / 336) + max(1, int(new_width * side / 336 + 0.5)))
    logits = torch.randn(2, side, side, generator=torch.Generator().manual_seed(side))
    cropped = crop_resize(logits, centred_box(width, height, 336), (height, width))
    cut = logits[:, rows, columns]
    expected = torch.nn.functional.interpolate(cut[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    assert cropped.shape == (2, height, width)
    assert torch.equal(cropped, expected)


@given(st.integers(1, 2000), st.data())
def test_scaled_boxes_round_as_the_papers_formulas(padded: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 2000))
    height, width = (data.draw(st.integers(1, padded)) for _ in range(2))
    top, left = data.draw(st.integers(0, padded - height)), data.draw(st.integers(0, padded - width))
    box = Box(top=top, left=left, height=height, width=width, size=padded).scaled(size)
    assert (box.top, box.left) == (int(top * size / padded), int(left * size / padded))
    assert box.height == max(1, min(int(height * size / padded + 0.5), size - box.top))
    assert box.width == max(1, min(int(width * size / padded + 0.5), size - box.left))


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
