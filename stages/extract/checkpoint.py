"""Where an LMM's files are, and what makes two checkpoints the same."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from manifests.errors import ModelError


def unloadable(folder: str, part: str, error: Exception, trusted: bool) -> ModelError:
    """What to say of a checkpoint whose configuration, processor or weights raised `error`."""
    if not trusted and has_code(folder):
        return ModelError(
            f"the {part} in {folder} can not be loaded without the Python code that came with it: read that code, and "
            "if you trust it give --trust-remote-code"
        )
    return ModelError(
        f"the {part} in {folder} can not be loaded ({first_line(error)}): a file is missing or damaged, copy or "
        "download the folder again"
    )


def has_code(folder: str) -> bool:
    """Whether a checkpoint names Python code of its own (`auto_map`, anywhere in one of its JSON files).

    Raises ModelError where that code is of another repository: it would be fetched, and what ran would not be known.
    """
    named: list[str] = []
    for path in sorted(Path(folder).glob("*.json")):
        with suppress(OSError, ValueError):  # what can not be read is said by what needs it
            named += _named_code(json.loads(path.read_text()))
    if foreign := [name for name in named if "--" in name]:
        raise ModelError(
            f"{folder} wants to run Python code of another repository ({foreign[0]}): copy that code into the folder "
            "and name it without the repository"
        )
    return bool(named)


def _named_code(values: Any, inside: bool = False) -> list[str]:
    """The strings in every `auto_map` of nested JSON values."""
    if isinstance(values, str):
        return [values] if inside else []
    if isinstance(values, dict):
        return [name for key, value in values.items() for name in _named_code(value, inside or key == "auto_map")]
    return [name for value in values for name in _named_code(value, inside)] if isinstance(values, list) else []


def first_line(error: BaseException) -> str:
    """The type and the first line of a foreign error, for a message of one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].strip()


def local_folder(source: str, *, weights: bool = False, download: bool = True, code: bool = False) -> str:
    """The folder that holds an LMM's files, downloaded to the Hugging Face cache where it is not there yet.

    source: a folder or a Hugging Face id.  weights, code: also its weights, its Python code.
    Raises ModelError in one line where neither the files nor the network are there.
    """
    folder = source if Path(source).is_dir() else _downloaded(source, weights, download, code)
    if weights and not list(Path(folder).glob("*.safetensors")):
        raise ModelError(f"{source} holds no *.safetensors weights")
    if code:
        has_code(folder)  # refuses code of other repositories
    return folder


def _downloaded(source: str, weights: bool, download: bool, code: bool) -> str:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja"] + ["*.safetensors"] * weights + ["*.py"] * code
    try:
        return snapshot_download(source, allow_patterns=patterns, local_files_only=not download)
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSErrors for "not there"
        raise ModelError(
            f"{source} is neither in the Hugging Face cache nor reachable ({type(error).__name__}): "
            f"on a machine with network run `hf download {source} --local-dir DIR`, copy DIR here and pass "
            "--lmm DIR"
        ) from None


def weights_identity(folder: str, *, code: bool = False) -> dict[str, str]:
    """sha256 of every weight and tokenizer file of a checkpoint folder, and of its `code`: what "the same LMM" means.

    Files of the Hugging Face cache are links to blobs that are named by their sha256, which saves reading them.
    """
    identity = {}
    paths = [p for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".json", ".model", ".jinja")]
    paths += Path(folder).rglob("*.py") if code else ()
    for path in sorted(p for p in paths if p.name != "training.json"):
        blob = path.resolve().name
        identity[str(path.relative_to(folder))] = blob if re.fullmatch("[0-9a-f]{64}", blob) else file_sha256(path)
    return identity


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
