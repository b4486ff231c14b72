"""Sound files of every format, spoilt: a reader gives samples that can be filed and judged, or says one line. Never
another exception, never a hang, never more memory than a small file can be worth.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.build import DATASETS, build, sources_of
from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.schema import problem
from tests.manifests.fuzzing import FORMATS, flip, spoil

BUDGET = settings(
    max_examples=25,  # of each format; thousands of others were tried while this was written
    deadline=None,
    derandomize=True,  # the same files on every machine: a failure is a bug of the change that shows it
    database=None,
    suppress_health_check=list(HealthCheck),
)
MEMORY: Final = 200 << 20  # bytes at any time; the files have a few KiB
OPTIONS: Final = {
    "refcoco": {"sentences": "all", "context": "alone"},
    "reasonseg": {"sentences": "all"},
    "own-coco": {"context": "alone"},
}
_SOUND: dict[str, dict[str, bytes]] = {}


def sound(tmp_path: Path, name: str) -> dict[str, bytes]:
    """The files of a format by their paths under the root."""
    if name not in _SOUND:
        root = tmp_path / "sound"
        FORMATS[name](root)
        _SOUND[name] = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return _SOUND[name]


def judge(root: Path, name: str, *, every: bool = False) -> None:
    """Read all there is; fails for anything but samples that can be used on, or a DatasetError of one line.

    every: all sentences alone, as far as the format has the choice.
    """
    options: Any = OPTIONS.get(name, {}) if every else {}
    for split in splits(root, name):
        try:
            samples = build(name, root, splits=[split], **options)
            write_manifest(root / "m", samples, {})
            assert list(Samples(root / "m")) == samples
            for sample in samples:
                problem(sample)
            list(next(s for s in sources_of(name, root) if s.split == split).images())
        except DatasetError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, repr(str(error))


def splits(root: Path, name: str) -> list[str]:
    try:
        return list(dict.fromkeys(source.split for source in sources_of(name, root)))
    except DatasetError as error:
        assert "\n" not in str(error)
        return ["val"]


def spoilt(draw: Any, name: str, data: bytes) -> bytes:
    """The file with its tree spoilt (json, lines of json, pickles), or its bytes."""
    if draw(st.integers(0, 3)) == 0 or name.endswith((".jpg", ".png")):
        return flip(draw, data)
    if name.endswith(".p"):
        return pickle.dumps(spoil(draw, pickle.loads(data)), draw(st.integers(0, 5)))
    if name.endswith(".jsonl"):
        lines = data.decode().split("\n")
        k = draw(st.integers(0, len(lines) - 1))
        return "\n".join([*lines[:k], json.dumps(spoil(draw, json.loads(lines[k]))), *lines[k + 1 :]]).encode()
    return json.dumps(spoil(draw, json.loads(data))).encode()


@pytest.mark.parametrize("name", FORMATS)
def test_spoilt_files(tmp_path: Path, name: str) -> None:
    files = sound(tmp_path, name)
    spoilable = [file for file in files if not file.endswith(".jpg")] + [next(f for f in files if f.endswith(".jpg"))]
    root = tmp_path / "root"

    @BUDGET
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        shutil.rmtree(root, ignore_errors=True)
        chosen = data.draw(st.sampled_from(spoilable))
        for file, content in files.items():
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(spoilt(data.draw, file, content) if file == chosen else content)
        judge(root, name, every=data.draw(st.booleans()))

    tracemalloc.start()  # sees what Python and numpy ask for, not what Pillow and pycocotools do
    try:
        examples()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_the_sound_files_are_sound(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    read = [s for split in splits(tmp_path, name) for s in _samples(tmp_path, name, split)]
    assert read and all(sample.error is None and sample.objects for sample in read)
    assert all(problem(s) is None or "without an answer" in str(problem(s)) for s in read)
    images = {path for source in sources_of(name, tmp_path) for path in _images(source)}
    assert images == {sample.image_path for sample in read}


def _samples(root: Path, name: str, split: str) -> list[Any]:
    try:
        return build(name, root, splits=[split])
    except DatasetError as error:
        assert "is missing" in str(error) or "no split" in str(error), error  # only some splits are written
        return []


def _images(source: Any) -> list[str]:
    try:
        return list(source.images())
    except DatasetError:
        return []


def test_every_format_is_fuzzed() -> None:
    """Of names that share a reader one is enough."""
    same = {"refcoco+": "refcoco", "refcocog": "refcoco", "refcoco-google": "refcoco", "refcocog-google": "refcoco"}
    rest = {name for name in DATASETS if not name.startswith(("scenes", "shifted"))} - FORMATS.keys()
    assert rest <= same.keys()
