"""Read a pickle that holds data only: RefCOCO's `refs(*).p`. Nothing in the file is ever called or imported."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from manifests.errors import DatasetError


def load_plain(path: Path) -> Any:
    """The lists, dicts, tuples, text, bytes and numbers of a pickle of protocol 0 to 5, also one made by Python 2.

    Python 2's byte strings become text: UTF-8, else Latin-1. Raises DatasetError for a file that is missing or broken
    and for one that names any global (class, function, extension, persistent object), before it is looked up.
    """
    try:
        try:
            return _load(path, "utf-8")
        except UnicodeDecodeError:
            return _load(path, "latin-1")
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{path} can not be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle can raise nearly anything: see pickle.UnpicklingError's docs
        reason = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{path} is not a pickle of plain data ({reason}): download it again") from None


def _load(path: Path, encoding: str) -> Any:
    with path.open("rb") as file:
        return _PlainUnpickler(file, path, encoding).load()


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
        raise DatasetError(f"{self._path} refers to an outside object {str(pid)[:80]!r}: refused, plain data only")
