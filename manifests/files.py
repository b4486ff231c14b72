"""Reading the files of a data root: what is missing, where it comes from, and what is refused because it can not be.

Every file may come from someone else. Limits are far above what any real file holds; those of pictures: `pictures.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from manifests.errors import DatasetError, NotThere
from manifests.pictures import size_fault

MAX_TEXT: Final = 10_000
"""Characters of a caption or question; the longest of the official files have about a thousand."""
_LARGEST_NUMBER: Final = 2**63 - 1
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


def shown(value: Any) -> str:
    """A value from a file inside a message: one line, short, whatever the value is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def short(value: Any) -> str:
    """The same, a text without the quotation marks around it."""
    return shown(value).strip("'\"")


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def digest(value: Any) -> str:
    """Eight characters that say which JSON value this is."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def read_json(path: Path, kind: type[list] | type[dict], source: str) -> Any:
    """The JSON list or dict of a file. Raises DatasetError; `source`, where to get the file, ends its message."""
    if not path.is_file():
        raise NotThere(f"{path} is missing: {source}")
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): {source}") from None
    if not isinstance(value, kind):
        raise DatasetError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}: {source}")
    return value


def records(value: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The list of dicts under `key` of the JSON dict of `path`. Raises DatasetError where it is anything else."""
    found = value.get(key)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise DatasetError(f"{path} has no list {key!r} of records: it is not the official file")
    return found


def check_record(row: Any, fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Raises DatasetError, naming `where`, for a record that lacks one of `fields` or has it of another type.

    true and false are whole numbers only where `fields` says bool; whole numbers have at most 64 bits.
    """
    bad = [name for name, kind in fields.items() if not isinstance(row, dict) or not _is(row.get(name), kind)]
    if bad:
        raise DatasetError(
            f"{where}: a record has no proper {', '.join(bad)}: {shown(row)}; it is not the official file"
        )


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and not (isinstance(value, int) and abs(value) > _LARGEST_NUMBER)


def by_id(rows: list[Any], fields: Mapping[str, type | tuple[type, ...]], where: str) -> dict[int, dict[str, Any]]:
    """Records with `fields`, "id" among them, by their id. Raises DatasetError for an id of two different records."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        check_record(row, fields, where)
        first = found.setdefault(row["id"], row)
        if first is not row and first != row:
            raise DatasetError(f"{where}: two different records have the id {row['id']}: download the file again")
    return found


def check_size(height: int, width: int, where: str) -> None:
    """Raises DatasetError, naming `where`, for an image size that no mask fits or that is absurdly large."""
    if fault := size_fault(height, width):
        raise DatasetError(f"{where} {fault}: it is not the official file")


def text_fault(text: str) -> str | None:
    """What is wrong with a text that the LMM is to read, after "it"; None if it can be used."""
    if len(text) > MAX_TEXT:
        return f"has {len(text)} characters, {MAX_TEXT} are allowed"
    return None if is_unicode(text) else "is not Unicode"


def is_unicode(text: str) -> bool:
    """False where a text holds half a character (a lone surrogate), which no file can be written with."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def leading_out(root: Path, names: Iterable[str]) -> str | None:
    """The first of these paths, relative to `root`, that is a link to a file outside; None: they all stay.

    A folder of the root may be a link (train2014 on another disk); then its files must stay in what it leads to.
    """
    real: dict[str, str] = {}
    for name in names:
        folder, _, _ = name.rpartition("/")
        if folder not in real:
            top = os.path.realpath(root / folder.partition("/")[0])
            inside = os.path.realpath(root / folder)
            real[folder] = top if os.path.commonpath([top, inside]) == top else ""
        path = root / name
        if not real[folder]:
            return name
        if path.is_symlink() and os.path.commonpath([real[folder], os.path.realpath(path)]) != real[folder]:
            return name
    return None
