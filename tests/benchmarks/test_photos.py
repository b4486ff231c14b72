"""Real photographs and a user's own files go through every command, to numbers and a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.photos import Config, as_coco, as_own, main
from manifests.masks import decode
from manifests.own import read_own
from manifests.png import read_png

COCO = Path(__file__).parents[3] / "shared" / "data" / "panopticapi"
pytestmark = pytest.mark.skipif(not COCO.is_dir(), reason=f"{COCO} is missing")


def test_two_coco_photos_and_the_same_as_own_data(small_head: Path, tmp_path: Path) -> None:
    result = main(Config(coco=COCO, head=small_head, out=tmp_path / "photos"))
    for name in ("coco", "own"):
        assert result[name]["images"] == 2 and result[name]["failed_samples"] == 0
        assert 0 <= result[name]["png_all"] <= 1
        with Image.open(result[name]["sheet"]) as sheet:
            assert min(sheet.size) > 300
    assert result["coco"]["objects"] == result["own"]["objects"] > 10
    # the same photos, texts and masks, whatever the format
    assert result["coco"]["png_all"] == result["own"]["png_all"]


def test_own_data_say_what_coco_says(tmp_path: Path) -> None:
    as_coco(COCO, tmp_path / "coco")
    as_own(tmp_path / "coco", tmp_path / "own")
    for theirs, own in zip(read_png(tmp_path / "coco", "val"), read_own(tmp_path / "own"), strict=True):
        assert [p.text for p in theirs.pieces] == [p.text for p in own.pieces]
        for a, b in zip(theirs.objects, own.objects, strict=True):
            assert (decode(a.mask) == decode(b.mask)).all() and (a.is_thing, a.plural) == (b.is_thing, b.plural)
