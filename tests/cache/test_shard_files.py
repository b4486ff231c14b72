"""Shards as files: short reads and writes, wrong sizes, and what is left when the disk is full or lies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from cache import shards
from cache.shard_files import ShardFile, advise, write_shards
from manifests.errors import CacheError
from tests.cache.test_shards import SPECS, bytes_of, values_of

FILES = Path("/proc/self/fd")


@pytest.fixture
def unit(tmp_path: Path) -> list[tuple]:
    """(path, spec, values) of every array, in folders of their own, and an empty tmp/."""
    (tmp_path / "tmp").mkdir()
    for spec in SPECS:
        (tmp_path / spec.name).mkdir()
    return [(tmp_path / spec.name / spec.shard_key(3), spec, values_of(spec)) for spec in SPECS]


def test_a_unit_is_written_as_encoded(tmp_path: Path, unit: list) -> None:
    written = write_shards(unit, tmp_path / "tmp")
    for (path, spec, values), shard in zip(unit, written, strict=True):
        data = bytes_of(spec, values)
        assert path.read_bytes() == data
        assert (shard.bytes, shard.blake3) == (len(data), blake3(data).hexdigest())
        np.testing.assert_array_equal(shard.crcs, shards.encode(spec, values)[1])
        size = shard.bytes
        with ShardFile(spec, path, size) as file:
            np.testing.assert_array_equal(
                shards.read(spec, file.fetch, 0, spec.slots_per_unit, crcs=shard.crcs, size=size), values
            )
            shards.check_index(spec, file.fetch, size)
        advise(path, 0, spec.shard_bytes)
    assert not list((tmp_path / "tmp").iterdir())


def test_short_reads_and_writes_go_on(tmp_path: Path, unit: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", _some(os.writev))
    monkeypatch.setattr(os, "preadv", _some(os.preadv))
    write_shards(unit, tmp_path / "tmp")
    assert all(path.read_bytes() == bytes_of(spec, values) for path, spec, values in unit)


def _some(call: Callable[..., int]) -> Callable[..., int]:
    """The system call, but only a few bytes of the first buffers."""

    def part(handle: int, buffers: list, *rest: int) -> int:
        return call(handle, [buffers[0], buffers[1][:1]] if len(buffers) > 1 else [buffers[0][:77]], *rest)

    return part


@pytest.mark.parametrize("call", ["writev", "fsync", "preadv"])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_full_disk_leaves_no_temporary_file(
    tmp_path: Path, unit: list, monkeypatch: pytest.MonkeyPatch, call: str, calls: int
) -> None:
    real, count = getattr(os, call), iter(range(1000))

    def fail(*args: object) -> int:
        if next(count) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_shards(unit, tmp_path / "tmp")
    assert not list((tmp_path / "tmp").iterdir())
    assert all(path.read_bytes() == bytes_of(spec, values) for path, spec, values in unit if path.exists())


def test_a_disk_that_gives_back_other_bytes_is_found(
    tmp_path: Path, unit: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def lie(handle: int, buffers: list, offset: int) -> int:
        if not offset and os.fstat(handle).st_size == SPECS[3].shard_bytes:  # one bit changed on its way
            os.pwrite(handle, bytes([values_of(SPECS[3]).flat[5] ^ 4]), 5)
        return real(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", lie)
    with pytest.raises(CacheError, match="other bytes came back than were written"):
        write_shards(unit, tmp_path / "tmp")
    assert not unit[3][0].exists() and not list((tmp_path / "tmp").iterdir())


def test_a_file_that_is_too_short_too_long_or_missing(tmp_path: Path, unit: list) -> None:
    path, spec, values = unit[0]
    data = bytes_of(spec, values)
    for wrong in (data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(shards.ShardFormatError, match=f"{len(wrong)} bytes"), ShardFile(spec, path):
            pass
    path.write_bytes(data)
    with ShardFile(spec, path) as file:
        os.truncate(path, 300)
        with pytest.raises(shards.ShardFormatError, match="the file ends at byte 300"):
            shards.read(spec, file.fetch, 0, 6)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="maps"), ShardFile(spec, path):
        pass


@pytest.mark.skipif(not FILES.exists(), reason="Linux lists a process's open files")
def test_no_file_stays_open(tmp_path: Path, unit: list) -> None:
    before = len(list(FILES.iterdir()))
    write_shards(unit, tmp_path / "tmp")
    unit[0][0].write_bytes(b"damaged")
    with pytest.raises(shards.ShardFormatError), ShardFile(unit[0][1], unit[0][0]):
        pass
    assert len(list(FILES.iterdir())) == before
