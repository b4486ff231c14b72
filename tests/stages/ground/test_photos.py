"""Pictures from anyone: rotated, transparent, broken, gigantic; files and folders."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.errors import DatasetError
from stages.ground.photos import open_photo, photos_in


def header_of(width: int, height: int) -> bytes:
    """A PNG that says its size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_cameras_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = (255, 0, 0)  # left as stored: top, turned by a quarter to the right
    stored, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = open_photo(tmp_path / "a.jpg")
    assert found.size == (20, 40) and found.mode == "RGB"
    upright = np.asarray(found).astype(int)
    assert upright[2:7, :, 0].min() > 200 and upright[15:, :, 0].max() < 60


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.putpixel((0, 0), (10, 20, 30, 255))
    found = open_photo(picture)
    assert found.getpixel((0, 0)) == (10, 20, 30) and found.getpixel((3, 1)) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_keep_their_greys(ending: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / f"a.{ending}")
    for given in (tmp_path / f"a.{ending}", Image.fromarray(ramp)):
        found = np.asarray(open_photo(given))
        assert np.abs(found.astype(int) - (ramp // 257)[..., None]).max() <= 1


def test_values_that_are_no_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    for given in (tmp_path / "a.tif", Image.fromarray(np.full((4, 4), -1, np.int32))):
        with pytest.raises(DatasetError, match="no colours"):
            open_photo(given)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1"])
def test_every_mode_is_rgb(mode: str, tmp_path: Path) -> None:
    Image.new("RGB" if mode == "P" else mode, (5, 3)).convert(mode).save(tmp_path / "a.tif")
    assert open_photo(tmp_path / "a.tif").mode == "RGB"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b"a text that is called a picture", "can not be decoded"),
        (header_of(20_000, 20_000), "more than the 134217728 pixels"),
        (header_of(100_000, 2), "pixels"),
        (header_of(30, 20), "can not be decoded"),
    ],
)
def test_no_pictures(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.png .*: give ") as fault:
        open_photo(tmp_path / "a.png")
    assert says in str(fault.value) and "\n" not in str(fault.value)


def test_arrays_are_rgb_bytes() -> None:
    assert open_photo(np.zeros((2, 3, 3), np.uint8)).size == (3, 2)
    for wrong in (np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3)), np.zeros((2, 3, 4), np.uint8)):
        with pytest.raises(DatasetError, match="uint8"):
            open_photo(wrong)


def test_files_and_folders_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "note.txt", "c.webp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.png").mkdir()
    b, note = tmp_path / "b.png", tmp_path / "note.txt"
    assert [path.name for path in photos_in([b, tmp_path, note])] == ["b.png", "a.JPG", "c.webp", "note.txt"]


def test_paths_that_hold_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in (("nothing", "is missing"), ("empty", "has no picture"), ("pipe.png", "is no file")):
        with pytest.raises(DatasetError, match=f"{name} {says}"):
            photos_in([tmp_path / name])
