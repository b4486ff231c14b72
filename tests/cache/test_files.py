from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cache.files import locked, write_whole


def test_put_if_absent_keeps_the_first(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"first", tmp_path, absent=True)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"second", tmp_path, absent=True)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"old", tmp_path)
    monkeypatch.setattr(os, "fsync", _fail)
    with pytest.raises(OSError, match="no disk"):
        write_whole(tmp_path / "a", b"new", tmp_path)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _fail(_: int) -> None:
    raise OSError("no disk")


def test_a_lock_keeps_another_process_out_until_it_dies(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with locked(lock, 7, 1):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)  # without releasing
    os.read(ready[0], 1)
    with locked(lock, 8, 1, wait=False):
        pass
    for start, length in ((7, 1), (0, 0)):
        with pytest.raises(BlockingIOError), locked(lock, start, length, wait=False):
            pass
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    began = time.monotonic()
    with locked(lock, 7, 1):
        assert time.monotonic() - began < 5
    for handle in (*ready, *go):
        os.close(handle)
