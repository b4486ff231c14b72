"""The manifest: what to look at. One row = one sample = one image + one text = one forward pass of the LMM.

    write_manifest("manifest.parquet", samples, {"dataset": "refcoco"})
    samples, meta = read_manifest("manifest.parquet"), manifest_meta("manifest.parquet")

It holds all that training and evaluation need besides the priors, masks included, and is the same on every machine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Final, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import DatasetError
from manifests.masks import Rle, area

DEFAULT_PROMPT: Final = "Please give me a description of the image."
MANIFEST_VERSION: Final = 2
Task = Literal["referring", "narrative"]

_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_PIECE = pa.struct([("text", pa.string()), ("object", pa.int32())])
_OBJECT = pa.struct(
    [
        ("object_id", pa.string()),
        ("mask", _MASK),
        ("is_thing", pa.bool_()),
        ("plural", pa.bool_()),
        ("category", pa.string()),
        ("phrase", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("sample_id", "dataset", "split", "task", "image_id", "image_path")]
    + [("height", pa.int32()), ("width", pa.int32()), ("prompt", pa.string())]
    + [("pieces", pa.list_(_PIECE)), ("objects", pa.list_(_OBJECT)), ("error", pa.string())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A run of the answer's text, tokenised alone. `object`: index into the sample's objects, None if it names none."""

    text: str
    object: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One thing to ground.

    object_id: the same in every sample that shows this object with another text.  mask: RLE at the image's own size.
    plural: several instances under one phrase.  category: "" where the data has none.  phrase: the words that name it.
    """

    object_id: str
    mask: Rle
    is_thing: bool
    plural: bool
    category: str
    phrase: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and one teacher-forced answer: the concatenation of `pieces`.

    image_path: relative to the data root, "/" between parts; DatasetError where it would leave the root.
    height, width: pixels of the image file, the frame of all masks.  prompt: the question asked before the answer.
    error: what the reader found wrong with this record; no absolute paths, a manifest is the same on every machine. Its
    objects are there all the same, without pixels where a mask can not be had: the metrics count them as misses.
    """

    sample_id: str
    dataset: str
    split: str
    task: Task
    image_id: str
    image_path: str
    height: int
    width: int
    prompt: str = DEFAULT_PROMPT
    pieces: tuple[Piece, ...]
    objects: tuple[Object, ...]
    error: str | None = None

    def __post_init__(self) -> None:
        if leaves_root(self.image_path):
            raise DatasetError(
                f"sample {self.sample_id}: image path {self.image_path!r} leaves the data root; "
                "give it relative to the root, without '..'"
            )


def leaves_root(path: str) -> bool:
    """Is this anything but a plain relative path ("a/b.jpg") that stays in its folder? Looks at the text only."""
    windows = PureWindowsPath(path)  # also splits at "/"; knows drives, which pathlib on Linux takes for names
    return not path.strip() or "\0" in path or bool(windows.anchor) or ".." in windows.parts or path.startswith("/")


def problem(sample: Sample) -> str | None:
    """Why a sample can not be used, in words for the user: what, where and the cure; None if it can."""
    if sample.error is not None:
        return sample.error
    spoken: set[int] = set()
    for piece in sample.pieces:
        if piece.object is None:
            continue
        if not 0 <= piece.object < len(sample.objects):
            return (
                f"sample {sample.sample_id}: the text {piece.text!r} belongs to object {piece.object}, there are "
                f"{len(sample.objects)}, counted from 0: correct the index"
            )
        if not piece.text.strip():
            return f"object {sample.objects[piece.object].object_id} has an empty text: give it words, or remove it"
        spoken.add(piece.object)
    if not sample.objects:
        return f"sample {sample.sample_id} has no object to ground: give a piece of its text a mask, or remove it"
    for index, item in enumerate(sample.objects):
        if index not in spoken:
            return f"no text speaks of object {item.object_id}: give it a piece of the text, or remove it"
        if list(item.mask["size"]) != [sample.height, sample.width]:
            return (
                f"the mask of object {item.object_id} is {'x'.join(map(str, item.mask['size']))} pixels (height x "
                f"width), its image {sample.height}x{sample.width}: give the mask at the image's size"
            )
        try:
            pixels = area(item.mask)
        except ValueError as error:
            return f"the mask of object {item.object_id} can not be decoded ({error}): correct its annotation"
        if pixels == 0:
            return f"the mask of object {item.object_id} has no pixels: correct its annotation, or remove it"
    return None


def write_manifest(path: str | os.PathLike[str], samples: Iterable[Sample], meta: Mapping[str, Any]) -> None:
    """Write samples, in order, and `meta` (JSON values) as Parquet: under a temporary name, then renamed.

    The same samples and meta give the same bytes (of one pyarrow version). Raises DatasetError for a sample_id that
    occurs twice and for text that is not Unicode.
    """
    path = Path(path)
    rows = [asdict(sample) for sample in samples]
    seen: set[str] = set()
    for row in rows:
        if row["sample_id"] in seen:
            raise DatasetError(f"{path}: two samples are called {row['sample_id']}; sample ids must be unique")
        seen.add(row["sample_id"])
    try:
        table = pa.Table.from_pylist(rows, _SCHEMA)
    except (UnicodeEncodeError, pa.ArrowException) as error:
        raise DatasetError(f"{path} can not be written: a sample holds a value outside the schema ({error})") from None
    header = json.dumps({"version": MANIFEST_VERSION, "meta": dict(meta)}, sort_keys=True, allow_nan=False)
    table = table.replace_schema_metadata({"manifest": header})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_manifest(path: str | os.PathLike[str] | pa.NativeFile) -> list[Sample]:
    """All samples, in order. Raises DatasetError where the file is missing or not a manifest of this version."""
    manifest_meta(path)
    return [_sample(row) for row in pq.read_table(path).to_pylist()]


def manifest_meta(path: str | os.PathLike[str] | pa.NativeFile) -> dict[str, Any]:
    """The `meta` given to `write_manifest`. Raises DatasetError as `read_manifest` does."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: build it first (run_pipeline.py manifest build)") from None
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} is not a readable Parquet file ({error}): build it again") from None
    try:
        header = json.loads((schema.metadata or {})[b"manifest"])
    except (KeyError, ValueError):
        raise DatasetError(f"{path} is not a manifest: build it with run_pipeline.py manifest build") from None
    if header["version"] != MANIFEST_VERSION or schema.names != _SCHEMA.names:
        raise DatasetError(
            f"{path} is a manifest of version {header['version']}, this program reads {MANIFEST_VERSION}: "
            "build it again"
        )
    return header["meta"]


def _sample(row: dict[str, Any]) -> Sample:
    if row["task"] not in get_args(Task):
        raise DatasetError(f"sample {row['sample_id']}: task {row['task']!r} is none of {', '.join(get_args(Task))}")
    row["pieces"] = tuple(Piece(**piece) for piece in row["pieces"])
    row["objects"] = tuple(Object(**item) for item in row["objects"])
    return Sample(**row)
