"""The restricted unpickler: plain data of every protocol passes, everything that names code is refused unrun."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import DatasetError
from manifests.pickles import load_plain

PLAIN = [{"a": [1, -2, 3.5, True, None, 10**30], "b": ("x", "ünï"), "c": {}, 4: "same", 5: "same"}]


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert load_plain(write(tmp_path / "p", pickle.dumps(PLAIN, protocol))) == PLAIN


def test_bytes_pass_in_the_protocols_that_know_them(tmp_path: Path) -> None:
    assert load_plain(write(tmp_path / "p", pickle.dumps([b"\x00\xff"], 4))) == [b"\x00\xff"]


def test_python2_text(tmp_path: Path) -> None:
    # what Python 2's cPickle writes for [{'sent': 'caf\xc3\xa9', u'x': 1L}] in protocols 0 and 2, and for Latin-1 bytes
    old = b"(lp1\n(dp2\nS'sent'\np3\nS'caf\\xc3\\xa9'\np4\nsVx\np5\nL1L\nsa."
    assert load_plain(write(tmp_path / "p", old)) == [{"sent": "café", "x": 1}]
    assert load_plain(write(tmp_path / "p", b"\x80\x02]q\x01U\x05caf\xc3\xa9q\x02a.")) == ["café"]
    assert load_plain(write(tmp_path / "p", b"\x80\x02]q\x01U\x04caf\xe9q\x02a.")) == ["café"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value, named",
    [
        (Call(os.system, "touch HACKED"), r"(posix|nt)\.system"),
        (Call(builtins.eval, "open('HACKED', 'w')"), r"(builtins|__builtin__)\.eval"),
        (Call(getattr, "", "join"), r"(builtins|__builtin__)\.getattr"),
        (np.float64(1.5), "numpy"),
        (np.zeros(3), "numpy"),
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (len, r"(builtins|__builtin__)\.len"),
        (Path("a"), "pathlib"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_code_is_refused_by_name_and_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, value: object, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "refs.p", pickle.dumps([PLAIN, value], protocol))
    with pytest.raises(DatasetError, match=rf"refs\.p asks to import '{named}.*: refused") as caught:
        load_plain(path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["refs.p"]


@pytest.mark.parametrize(
    "data, why",
    [
        (b"(S'touch HACKED'\nios\nsystem\n.", r"os\.system"),  # INST
        (b"\x80\x04\x8c\x03o\ns\x8c\x01x\x93.", r"import 'o\\ns\.x'"),  # STACK_GLOBAL with a line break
        (b"(cos\nsystem\nS'touch HACKED'\no.", r"os\.system"),  # OBJ
        (b"\x80\x02\x82\x01.", "extension code"),  # EXT1
        (b"Ppid\n.", "outside object 'pid'"),  # PERSID
        (b"](]R.", "not a pickle of plain data"),  # REDUCE of a list
        (b"]}b.", "not a pickle of plain data"),  # BUILD
        (b"", "not a pickle of plain data"),
        (pickle.dumps(PLAIN)[:-9], "not a pickle of plain data"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "not a pickle of plain data"),
    ],
)
def test_handwritten_and_broken_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=why):
        load_plain(write(tmp_path / "p", data))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can not be read"):
        load_plain(tmp_path / "absent")
