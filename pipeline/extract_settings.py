"""What an extraction was told to extract, kept with the cache: so that another can be made like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipeline.extract import Extract

SETTINGS: Final = (
    *("lmm", "dataset", "data_root", "splits", "limit", "sentences", "store_grid", "views", "context", "dtype"),
    *("attention", "trust_remote_code", "sam", "sam_checkpoint", "answer", "max_answer_tokens", "decontaminate"),
)
"""Fields of `Extract`. How it is run is none of them, and the batch size is kept by itself."""


def settings_of(args: Extract) -> dict[str, Any]:
    """Those that are not the defaults, as JSON; folders by their absolute path."""
    from stages.extract.presets import PRESETS

    found = {}
    for name in SETTINGS:
        value = getattr(args, name)
        folder = name == "lmm" and value not in ("tiny", *PRESETS) and Path(value).is_dir()
        if folder or isinstance(value, Path):
            value = str(Path(value).absolute())
        if value != getattr(type(args)(), name):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def from_settings(found: dict[str, Any]) -> Extract:
    """The other way round."""
    from pipeline.extract import Extract

    values: dict[str, Any] = {
        n: tuple(v) if n == "splits" else Path(v) if n in ("data_root", "sam_checkpoint") else v
        for n, v in found.items()
    }
    return Extract(**values)
