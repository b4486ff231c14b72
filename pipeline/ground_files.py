"""What `ground` leaves in its folder: NAME.json and NAME.png of every image, and ground.json."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import DatasetError

if TYPE_CHECKING:
    from stages.ground import Grounding

FILE: Final = "ground.json"
COMMAND: Final = "ground"
_LONGEST: Final = 200  # bytes of a name: file systems take 255, and it gets endings


def names(paths: Sequence[Path]) -> list[str]:
    """A name for the files of each image: its own without the suffix, with -2, -3, … where another has it before.

    The same paths in the same order have the same names. Two differ in more than capitals, for not all file systems
    tell those apart.
    """
    taken, found = {Path(FILE).stem}, []
    for path in paths:
        stem = "".join(c if c.isprintable() else "_" for c in path.stem).lstrip(".")
        stem = stem.encode()[:_LONGEST].decode(errors="ignore") or "image"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        found.append(name)
    return found


def sha256(path: Path) -> str:
    """Of a file's bytes. DatasetError where it can not be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise DatasetError(f"{path} can not be read ({fault.strerror}): check its rights") from None


def is_ours(out: Path) -> bool:
    """Is this a folder that `ground` has begun to fill?"""
    return (_read(out / FILE) or {}).get("command") == COMMAND


def begin(out: Path) -> None:
    """Marks the folder as this command's, before there is a result."""
    if not (out / FILE).exists():
        _write(out / FILE, _json({"command": COMMAND}))


def kept(out: Path, name: str, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The content of NAME.json where it is of the same image with the same settings, and NAME.png is there."""
    from stages.ground.results import SCHEMA

    record = _read(out / f"{name}.json")
    if record is None or not (out / f"{name}.png").is_file():
        return None
    same = {key: value for key, value in made_of.items() if key != "image"} | {"schema": SCHEMA}
    return record if all(key in record and record[key] == value for key, value in same.items()) else None


def write(out: Path, name: str, record: dict[str, Any], shown: Grounding, side: int) -> None:
    """NAME.png, and then NAME.json: where that is, the picture is of the same run. shown: with the masks to draw."""
    from stages.ground.overlay import draw_overlay

    (out / f"{name}.json").unlink(missing_ok=True)  # of an earlier run
    picture = io.BytesIO()
    draw_overlay(shown, side).save(picture, "PNG")
    _write(out / f"{name}.png", picture.getvalue())
    _write(out / f"{name}.json", _json(record))


def finish(
    out: Path,
    about: dict[str, Any],
    results: Sequence[str],
    failures: Sequence[dict[str, str]],
    totals: dict[str, Any],
) -> Path:
    """ground.json; -> where it is."""
    found = {"command": COMMAND, "results": list(results), "failures": list(failures)} | about | {"totals": totals}
    return _write(out / FILE, _json(found))


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: bytes) -> Path:
    """Under a temporary name, then renamed: a file under its own name is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    return temporary.replace(path)
