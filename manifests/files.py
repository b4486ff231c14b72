"""Reading the small files of a data root, with errors that say what is missing and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from manifests.errors import DatasetError
from manifests.pictures import size_fault

MAX_TEXT: Final = 10_000
"""Characters of a caption or question; the longest of the official files have about a thousand."""


def read_json(path: Path, kind: type[list] | type[dict], source: str) -> Any:
    """The JSON list or dict of a file. Raises DatasetError; `source`, where to get the file, ends its message."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing: {source}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
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
    """Raises DatasetError, naming `where`, for a record that lacks one of `fields` or has it of another type."""
    bad = [name for name, kind in fields.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)]
    if bad:
        raise DatasetError(
            f"{where}: a record has no proper {', '.join(bad)}: {repr(row)[:80]}; it is not the official file"
        )


def check_size(height: int, width: int, where: str) -> None:
    """Raises DatasetError, naming `where`, for an image size that no mask fits or that is absurdly large."""
    if fault := size_fault(height, width):
        raise DatasetError(f"{where} {fault}: it is not the official file")


def text_fault(text: str) -> str | None:
    """What is wrong with a text that the LMM is to read, after "it"; None if it can be used."""
    if len(text) > MAX_TEXT:
        return f"has {len(text)} characters, {MAX_TEXT} are allowed"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "is not Unicode"
    return None


def short(value: Any) -> str:
    """A value of a file as a message can show it: in one line, its first 40 characters."""
    return " ".join(str(value).split())[:40]
