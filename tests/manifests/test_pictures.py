"""Sizes come from headers, and nothing that a file holds makes reading them fail in another way than ValueError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.pictures import MAX_PIXELS, MAX_SIDE, picture_size, size_fault


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp"])
def test_height_and_width(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (7, 5)).save(path)
    assert picture_size(path) == (5, 7)


def test_the_rotation_flag_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == (5, 7)


@pytest.mark.filterwarnings("error")
def test_a_large_photo_is_no_bomb(tmp_path: Path) -> None:
    """Pillow warns from 89 million pixels on; what is too large is said here."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == (10_000, 10_000)


@pytest.mark.filterwarnings("ignore")  # Pillow has much to say about damaged files
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "TIFF", "GIF"]),
    st.integers(0, 200),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, kind: str, at: int, junk: bytes, cut: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    Image.new("RGB", (7, 5)).save(path, kind)
    data = path.read_bytes()
    path.write_bytes(data[:at] + junk + (b"" if cut else data[at + len(junk) :]))
    try:
        height, width = picture_size(path)
    except ValueError as fault:
        assert str(fault).startswith("damaged ") and "\n" not in str(fault)
    else:
        assert 0 < height * width <= MAX_PIXELS


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a\.jpg is missing: put it there$"):
        picture_size(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="can not be decoded"):
        picture_size(tmp_path)


def test_sizes() -> None:
    assert size_fault(MAX_SIDE, MAX_PIXELS // MAX_SIDE) is None
    assert size_fault(0, 5) == "is 0x5 pixels (height x width)"
    assert str(size_fault(-(10**9), -(10**9))).startswith("is -1000000000x")
    assert str(size_fault(2, MAX_PIXELS)).endswith("are allowed")
