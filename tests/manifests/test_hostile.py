"""Files made to do harm, in every format: each is refused with one line that says what is wrong, at once."""

from __future__ import annotations

import json
import pickle
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Final

import pytest

from manifests.build import build
from manifests.errors import DatasetError
from manifests.masks import area, empty, encode, from_segmentation
from manifests.pickles import load_plain
from manifests.pictures import MAX_PIXELS, MAX_SIDE, size_fault
from manifests.schema import Object, Piece, Sample, problem
from tests.manifests.fuzzing import FORMATS, NAME, POLYGON

SPLIT: Final = {"gcg-psg": "train", "gcg-refcocog": "train", "gcg-flickr": "train"}
INSTANCES: Final = "refcoco/refcoco/instances.json"
REFS: Final = "refcoco/refcoco/refs(unc).p"
PANOPTIC: Final = "annotations/panoptic_val2017.json"
PNG: Final = "png/png_coco_val2017.json"
REASON: Final = "reason_seg/ReasonSeg/val/a.json"
CAPTIONS: Final = "GranDf/annotations/val_test/val_gcg_coco_caption_gt.json"
MASKS: Final = "GranDf/annotations/val_test/val_gcg_coco_mask_gt.json"
PSG: Final = "GranDf/annotations/train/OpenPsgGCG_train.json"
COCO: Final = "annotations/val.json"
OWN: Final = "samples.jsonl"


def change(path: Path, where: tuple[Any, ...], value: Any) -> None:
    """Put a value at a place of a json, of the first line of a jsonl, or of a pickle."""
    data = path.read_bytes()
    lines: list[bytes] = data.split(b"\n") if path.suffix == ".jsonl" else [data]
    tree = pickle.loads(data) if path.suffix == ".p" else json.loads(lines[0])
    node = tree
    for step in where[:-1]:
        node = node[step]
    node[where[-1]] = value
    lines[0] = pickle.dumps(tree, 2) if path.suffix == ".p" else json.dumps(tree).encode()
    path.write_bytes(b"\n".join(lines))


def complaint(root: Path, name: str, seconds: float = 5) -> str:
    """Why nothing or not everything of the split can be used; fails if all can, or if it takes long to say."""
    start = time.perf_counter()
    try:
        samples = build(name, root, splits=[SPLIT.get(name, "val")])
    except DatasetError as error:
        text = str(error)
    else:
        found = [why for sample in samples if (why := problem(sample)) and "without an answer" not in why]
        assert found, "nothing is wrong with it"
        text = found[0]
    assert time.perf_counter() - start < seconds and "\n" not in text and len(text) < 1500
    return text


HUGE: Final = [[n for k in range(10**5) for n in ((17, 12) if k % 2 else (-16, -12))]] * 2
LONG: Final = "x" * 10**6
BAD: Final = [
    ("refcoco", INSTANCES, ("images", 0, "height"), 10**9, "is 1000000000x8 pixels, more than"),
    ("refcoco", INSTANCES, ("images", 0, "height"), True, "no proper height"),
    ("refcoco", INSTANCES, ("images", 0, "id"), True, "no proper id"),
    ("refcoco", INSTANCES, ("images", 0, "id"), 10**30, "no proper id"),
    ("refcoco", INSTANCES, ("images", 0, "file_name"), "../../etc/passwd", "leaves the data root"),
    ("refcoco", INSTANCES, ("images", 0, "file_name"), "a\0b", "leaves the data root"),
    ("refcoco", INSTANCES, ("annotations", 0, "segmentation"), [[float("nan")] * 6], "far outside the image"),
    ("refcoco", INSTANCES, ("annotations", 0, "segmentation"), [[0, 0, float("inf"), 1, 2, 2]], "far outside"),
    ("refcoco", INSTANCES, ("annotations", 0, "segmentation"), HUGE, "outlines are"),
    ("refcoco", INSTANCES, ("annotations", 1, "segmentation"), {"size": [10**9] * 2, "counts": [0]}, "more than"),
    ("refcoco", INSTANCES, ("annotations", 1, "segmentation"), {"size": [6, 8], "counts": [48, 2**40]}, "add up to"),
    ("refcoco", INSTANCES, ("annotations", 1, "segmentation"), {"size": [6, 8], "counts": "0000000"}, "run lengths"),
    ("refcoco", INSTANCES, ("annotations", 1, "segmentation"), {"size": [3, 8], "counts": [24]}, "3x8 pixels"),
    ("refcoco", INSTANCES, ("annotations", 1, "id"), 0, "two different records have the id 0"),
    ("refcoco", REFS, (0, "sentences", 0, "sent"), LONG, "has 1000000 characters, 10000 are allowed"),
    ("refcoco", REFS, (0, "sentences", 0, "sent"), "a \ud800", "half a character"),
    ("refcoco", REFS, (0, "ref_id"), 10**5000, "no proper ref_id"),
    ("refcoco", REFS, (0, "ref_id"), True, "no proper ref_id"),
    ("refcoco", REFS, (0, "ref_id"), 11, "holds ref 11 twice"),
    ("refcoco", REFS, (0, "sentences"), [{"sent": "x"}] * 10**5, "more than 1000 sentences"),
    ("png", PNG, (0, "segments", 0, "utterance"), LONG, "has 1000000 characters"),
    ("png", PNG, (0, "segments", 0, "segment_ids"), ["9" * 5000], "are not whole numbers"),
    ("png", PNG, (0, "image_id"), "9" * 5000, "which the panoptic json does not have"),
    ("png", PNG, (0, "image_id"), True, "no proper image_id"),
    ("png", PANOPTIC, ("images", 0, "file_name"), "../x.jpg", "leaves the data root"),
    ("png", PANOPTIC, ("images", 0, "width"), 10**9, "more than"),
    ("coco-panoptic", PANOPTIC, ("images", 0, "file_name"), "../x.jpg", "leaves the data root"),
    ("coco-panoptic", PANOPTIC, ("images", 0, "width"), 10**9, "more than"),
    ("coco-panoptic", PANOPTIC, ("annotations", 0, "segments_info", 0, "id"), 2**24, "can not hold segment"),
    ("coco-panoptic", PANOPTIC, ("annotations", 0, "segments_info", 1, "id"), 5, "two different records have the id 5"),
    ("coco-panoptic", PANOPTIC, ("categories", 0, "name"), LONG, "characters"),
    ("reasonseg", REASON, ("text", 0), LONG, "has 1000000 characters"),
    ("reasonseg", REASON, ("text", 0), "a \ud800", "not Unicode"),
    ("reasonseg", REASON, ("shapes", 0, "points"), [[float("nan"), 1]] * 3, "far outside"),
    ("reasonseg", REASON, ("shapes",), [{"label": "a", "points": [[0, 0]] * 3}] * 1001, "has 1001 shapes"),
    ("reasonseg", REASON, ("shapes", 0, "points"), [[8 * (k % 2), 5] for k in range(10**5)], "outline"),
    ("gcg", CAPTIONS, ("annotations", 0, "caption"), LONG, "has 1000000 characters"),
    ("gcg", CAPTIONS, ("images", 0, "height"), 10**8, "its image is 100000000x8 pixels"),
    ("gcg", CAPTIONS, ("annotations", 0, "labels"), ["a \ud800", "b"], "not Unicode"),
    ("gcg", MASKS, ("annotations", 0, "segmentation"), {"size": [10**9] * 2, "counts": "0"}, "more than"),
    ("gcg", MASKS, ("annotations", 1, "segmentation"), HUGE, "outlines are"),
    ("gcg-psg", PSG, (0, "file_name"), "../../x.jpg", "leaves the data root"),
    ("own", OWN, ("image",), "../a.jpg", "leaves the data root"),
    ("own", OWN, ("pieces", 0, "mask"), "../a.png", "leaves the data root"),
    ("own", OWN, ("pieces", 0, "mask"), "\ud800.png", "not Unicode"),
    ("own", OWN, ("pieces", 0, "text"), LONG, "has 1000000 characters"),
    ("own", OWN, ("pieces", 1, "mask"), {"rle": {"size": [10**9] * 2, "counts": "0"}}, "more than"),
    ("own", OWN, ("pieces", 1, "mask"), {"polygon": [float("nan")] * 6}, "far outside"),
    ("own-coco", COCO, ("images", 0, "height"), 10**9, "more than"),
    ("own-coco", COCO, ("images", 0, "file_name"), "../x.jpg", "leaves the data root"),
    ("own-coco", COCO, ("annotations", 0, "phrase"), LONG, "has 1000000 characters"),
    ("own-coco", COCO, ("annotations", 0, "image_id"), True, "no proper image_id"),
    ("own-coco", COCO, ("annotations", 0, "segmentation"), HUGE, "outlines are"),
    ("own-coco", COCO, ("annotations", 1, "id"), 0, "two different records have the id 0"),
]


@pytest.mark.parametrize("name, file, where, value, words", BAD, ids=[f"{b[0]} {b[2][-1]} {b[4][:20]}" for b in BAD])
def test_refused(tmp_path: Path, name: str, file: str, where: tuple[Any, ...], value: Any, words: str) -> None:
    FORMATS[name](tmp_path)
    change(tmp_path / file, where, value)
    assert words in complaint(tmp_path, name)


@pytest.mark.parametrize("name", FORMATS)
def test_json_that_is_nested_deeply(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    (file,) = [p for p in tmp_path.rglob("*.json*") if p.name not in ("instances.json",)][:1] or [tmp_path / INSTANCES]
    file.write_bytes(b"[" * 10**5 + b"]" * 10**5)
    text = complaint(tmp_path, name)
    assert "not JSON" in text


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_is_a_link_out_of_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    FORMATS[name](root)
    (photo,) = [p for p in root.rglob("*.jpg")]
    secret = tmp_path / "secret.jpg"
    photo.rename(secret)
    photo.symlink_to(secret)
    assert "out of the data root" in (text := complaint(root, name)) or "leaves the data root" in text


def test_a_folder_of_images_may_be_a_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    FORMATS["refcoco"](root)
    (root / "train2014").rename(tmp_path / "disk")
    (root / "train2014").symlink_to(tmp_path / "disk")
    assert build("refcoco", root, splits=["val"])
    (tmp_path / "disk" / "sub").symlink_to(tmp_path)
    change(root / INSTANCES, ("images", 0, "file_name"), f"sub/{NAME}.jpg")
    assert "out of the data root" in complaint(root, "refcoco")


def bomb(path: Path, width: int, height: int) -> None:
    """A png of a few bytes that says it is this large."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("size", [(12_000, 12_000), (50_000, 50_000), (2**31 - 1, 1), (MAX_SIDE + 1, 1)])
@pytest.mark.parametrize(
    "name, file",
    [
        ("own", "a.jpg"),
        ("own", "masks/m.png"),
        ("png", f"annotations/panoptic_val2017/{NAME}.png"),
        ("coco-panoptic", f"annotations/panoptic_val2017/{NAME}.png"),
        ("reasonseg", "reason_seg/ReasonSeg/val/a.jpg"),
    ],
)
def test_pictures_that_decompress_to_gigabytes(tmp_path: Path, name: str, file: str, size: tuple[int, int]) -> None:
    FORMATS[name](tmp_path)
    bomb(tmp_path / file, *size)
    text = complaint(tmp_path, name)
    assert Path(file).name in text and ("allowed" in text or "pixels" in text or "decoded" in text)


def test_a_large_photo_with_many_large_shapes(tmp_path: Path) -> None:
    FORMATS["reasonseg"](tmp_path)
    photo = tmp_path / "reason_seg/ReasonSeg/val/a.jpg"
    bomb(photo, 6000, 6000)
    whole = {"label": "target", "points": [[0, 0], [5999, 0], [5999, 5999], [0, 5999]]}
    corner = {"label": "target", "points": [[0, 0], [9, 0], [9, 9], [0, 9]]}
    change(tmp_path / REASON, ("shapes",), [whole] * 1000)  # hours, if each were drawn
    assert "a.json: its shapes are larger than 134,217,728 pixels together" in complaint(tmp_path, "reasonseg", 20)
    change(tmp_path / REASON, ("shapes",), [corner] * 1000)
    (sample,) = build("reasonseg", tmp_path, splits=["val"])
    assert sample.error is None and area(sample.objects[0].mask) == 100


def test_a_caption_with_labels_too_long_to_look_for(tmp_path: Path) -> None:
    FORMATS["gcg"](tmp_path)
    change(tmp_path / CAPTIONS, ("annotations", 0, "caption"), "a " * 5000)
    change(tmp_path / CAPTIONS, ("annotations", 0, "labels"), ["a " * k + "b" for k in range(999)])
    change(tmp_path / MASKS, ("annotations",), [{"image_id": NAME, "segmentation": [POLYGON]}] * 999)
    start = time.perf_counter()
    (sample,) = build("gcg", tmp_path, splits=["val"])
    assert len(sample.objects) == 999 and time.perf_counter() - start < 5


def test_an_eps_file_runs_nothing(tmp_path: Path) -> None:
    FORMATS["own"](tmp_path)
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n(x) print\n%%EOF\n"
    )
    assert "image 'a.jpg' can not be decoded" in complaint(tmp_path, "own")


@pytest.mark.parametrize("data", [b"\x80\x02]r\xff\xff\xff\x7f.", b"]p2147483647\n.", b"]p" + b"9" * 3000 + b"\n."])
def test_a_pickle_that_asks_for_memory(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p").write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(DatasetError, match="memo has impossible places"):
        load_plain(tmp_path / "p")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_memo_of_an_honest_pickle_passes(tmp_path: Path, protocol: int) -> None:
    value = [
        {"text": f"r p {k}", "row": [k, 10**40, 1.5, None], "b": b"r\xff\xff\xff\xff"[: protocol * 5]}
        for k in range(700)
    ]
    for row in value:
        if protocol < 3:
            row.pop("b")
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    assert load_plain(tmp_path / "p") == value


def test_limits_of_sizes() -> None:
    assert size_fault(1, 1) is size_fault(MAX_SIDE, MAX_PIXELS // MAX_SIDE) is None
    for size in ((0, 1), (1, -1), (MAX_SIDE + 1, 1), (20_000, 20_000), (True, 4), (4.0, 4), ("4", 4)):
        assert size_fault(*size)
    assert empty(3, 5) == encode(__import__("numpy").zeros((3, 5), bool))
    assert from_segmentation([POLYGON], 6, 8)["size"] == [6, 8]


def test_a_sample_of_any_origin_is_judged() -> None:
    item = Object(object_id="o", mask=empty(2, 2), is_thing=True, plural=False, category="", phrase="x")
    names: dict[str, Any] = {"sample_id": "s", "dataset": "d", "split": "val", "task": "referring", "image_id": "1"}
    wide = Sample(
        **names, image_path="a.jpg", height=10**9, width=10**9, pieces=(Piece(text="x", object=0),), objects=(item,)
    )
    assert "1000000000x1000000000 pixels" in str(problem(wide))
    with pytest.raises(DatasetError, match="leaves the data root"):
        Sample(**names, image_path="x" * 300, height=1, width=1, pieces=(), objects=())
