"""Read a pickle that holds data only: RefCOCO's `refs(*).p`. Nothing in the file is ever called or imported."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, Final, NoReturn

from manifests.errors import DatasetError
from manifests.files import shown

_SIZES: Final = [-1] * 256  # of an opcode's argument in bytes; -1: no opcode
_TO_NEWLINE, _COUNTED = -2, {-2: 1, -3: 4, -4: 4, -5: 8}  # pickletools' marks of arguments that say how long they are
for _opcode in pickletools.opcodes:
    _n = 0 if _opcode.arg is None else _opcode.arg.n
    _SIZES[ord(_opcode.code)] = (
        _TO_NEWLINE if _n == pickletools.UP_TO_NEWLINE else _n if _n >= 0 else -10 - _COUNTED[_n]
    )
_STOPS: Final = b".ci"  # the end; GLOBAL and INST, which are refused when they are reached
_PUT, _LONG_PUT = b"pr"


def _harmless() -> re.Pattern[bytes]:
    """A run of opcodes with arguments of fixed size, none of them a place in the memo beyond a million."""
    kinds = [rb"r..[\x00-\x0f]\x00"]
    for size in (0, 1, 2, 4, 8):
        codes = [re.escape(bytes([c])) for c in range(256) if _SIZES[c] == size and c not in (*_STOPS, _LONG_PUT)]
        kinds.append(b"[" + b"".join(codes) + b"]" + b"." * size)
    return re.compile(b"(?:" + b"|".join(kinds) + b")*+", re.DOTALL)


_HARMLESS: Final = _harmless()


def load_plain(path: Path) -> Any:
    """The lists, dicts, tuples, text, bytes and numbers of a pickle of protocol 0 to 5, also one made by Python 2.

    Python 2's byte strings become text: UTF-8, else Latin-1. Raises DatasetError for a file that is missing or broken
    and for one that names any global (class, function, extension, persistent object), before it is looked up.
    """
    try:
        data = path.read_bytes()
        _check_memo(data, path)
        try:
            return _load(data, path, "utf-8")
        except UnicodeDecodeError:
            return _load(data, path, "latin-1")
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{path} can not be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle can raise nearly anything: see pickle.UnpicklingError's docs
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DatasetError(f"{path} is not a pickle of plain data ({reason}): download it again") from None


def _load(data: bytes, path: Path, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(data), path, encoding).load()


def _check_memo(data: bytes, path: Path) -> None:
    """Raises DatasetError for a place in the memo beyond the file's length, which no pickler writes.

    The C unpickler makes room for every place up to the one that is named: seven bytes could ask for 64 GB.
    """
    place = 0
    while True:
        run = _HARMLESS.match(data, place)
        place = run.end() if run else place
        if place >= len(data):
            return
        opcode, size = data[place], _SIZES[data[place]]
        place += 1
        if size == -1 or opcode in _STOPS:
            return  # the unpickler says what is wrong, or is done
        if size == _TO_NEWLINE:
            size = data.find(b"\n", place) + 1 - place
            if size <= 0 or (opcode == _PUT and size > len(str(len(data))) + 1):
                break
        elif size <= -10:
            size = -10 - size
            size += int.from_bytes(data[place : place + size], "little")
        if opcode in (_PUT, _LONG_PUT):
            text = data[place : place + size]
            memo = int.from_bytes(text, "little") if opcode == _LONG_PUT else int(text)
            if not 0 <= memo <= len(data):
                break
        place += size
    raise DatasetError(f"{path} is not a pickle of plain data (its memo has impossible places): download it again")


class _PlainUnpickler(pickle.Unpickler):
    """GLOBAL, STACK_GLOBAL, INST and EXT all come to `find_class`; REDUCE, NEWOBJ and BUILD need what they bring."""

    def __init__(self, file: Any, path: Path, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DatasetError(
            f"{self._path} asks to import {f'{module}.{name}'[:80]!r}: refused, as a pickle could run any code that way"
            "; RefCOCO's files hold plain lists, dicts, text and numbers only: download it from the official source"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DatasetError(f"{self._path} refers to an outside object {shown(pid)}: refused, plain data only")
