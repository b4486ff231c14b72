"""A stored head: a folder with its weights (safetensors), its description (JSON), and the record of its training.

    save_head(head, Path("runs/head"))     load_head(Path("runs/head"))

Where the head was evaluated before it was published, metrics.json of that evaluation lies beside them.
No file of it can run code. `config.json` is written last: a folder that has it is complete.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from cache.derive import content_of
from cache.identity import differing
from manifests.errors import IdentityMismatch, ModelError
from manifests.schema import CAPTIONS
from stages.extract.checkpoint import file_sha256
from stages.extract.sam import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_weights
from stages.train_head.heads.base import Head, PriorShape

RECORD_FILE: Final = "training.json"
METRICS_FILE: Final = "metrics.json"
_FIELDS: Final = {"head", "shape", "config", "priors"}


def save_head(head: Head, folder: Path) -> None:
    """Writes weights, record (training.json), evaluation, then config.json with the identity of the head's priors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    partial = folder / f"{WEIGHTS_FILE}.partial"
    save_file(weights, partial)
    partial.replace(folder / WEIGHTS_FILE)
    _write(folder / RECORD_FILE, head.record)
    (folder / METRICS_FILE).unlink(missing_ok=True)  # of another head
    if head.evaluation is not None:
        _write(folder / METRICS_FILE, head.evaluation)
    shape = {name: value for name, value in asdict(head.shape).items() if value is not None}
    _write(
        folder / CONFIG_FILE,
        {"head": head.name, "shape": shape, "config": asdict(head.config), "priors": head.priors},
    )


def load_head(folder: Path, head_class: type[Head] | None = None) -> Head:
    """The stored head of `folder`, on the CPU, in eval mode.

    head_class: the class of a head that is not one of this program's. A folder only names its head: no code of its own
    choice is imported. ModelError: no head there, another class's, or config or weights with missing or unknown names.
    """
    from stages.train_head.heads import HEADS

    description = read_description(folder)
    name = description["head"]
    known = HEADS | ({head_class.name: head_class} if head_class else {})
    if not isinstance(name, str) or name not in known:
        raise ModelError(
            f"{folder} holds a head {name!r}, which is none of this program's ({', '.join(HEADS)}); "
            "say whose code it is: --head-class module:Class"
        )
    if head_class is not None and name != head_class.name:
        raise ModelError(f"{folder} holds a head {name!r}, not {head_class.name!r}")
    kind, file = known[name], folder / CONFIG_FILE
    try:
        head = kind.from_values(PriorShape(**description["shape"]), description["config"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{file} does not describe a head {name!r}: {' '.join(str(error).split())}") from error
    missing = sorted(asdict(head.config).keys() - description["config"].keys())
    if missing:  # a default in its place could be another head than the one that was trained
        raise ModelError(f"{file} does not describe a head {name!r}; missing: {missing}")
    weights = folder / WEIGHTS_FILE
    load_weights(head, read_weights(weights), str(weights))
    head.priors, head.record = description["priors"], read_record(folder)
    if (folder / METRICS_FILE).is_file():
        head.evaluation = read_json(folder / METRICS_FILE, "get the head again, or delete this file")
    return head.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """`config.json` of a stored head: its name ("head"), the priors' shape, its config, the priors' identity."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ModelError(f"no head in {folder}: {CONFIG_FILE} is missing (never trained there, or not to the end)")
    description = read_json(file, "get the head again")
    found = set(description)
    if found != _FIELDS:
        raise ModelError(
            f"{file} does not describe a head; missing: {sorted(_FIELDS - found)}, unknown: {sorted(found - _FIELDS)}"
        )
    if not isinstance(description["priors"], dict | None):
        raise ModelError(f"{file} does not describe a head; priors is no identity: {str(description['priors'])[:80]}")
    return description


def read_record(folder: Path) -> dict[str, Any]:
    """`training.json` of a stored head. ModelError where it can not be read."""
    return read_json(folder / RECORD_FILE, "train the head again, or get it whole")


def read_json(file: Path, cure: str) -> dict[str, Any]:
    """A JSON object in a file. ModelError, with `cure`, for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} can not be read as JSON ({error}): {cure}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} holds no JSON object: {cure}")
    return values


def weights_digest(folder: Path) -> str:
    """sha256 of a stored head's weights: which head was it?"""
    return file_sha256(folder / WEIGHTS_FILE)


def is_head(folder: Path) -> bool:
    """Does this folder hold a stored head?"""
    try:
        return bool(read_description(folder))
    except ModelError:
        return False


def require_same_priors(
    head: Head,
    identity: dict[str, Any],
    where: str,
    *,
    what: str = "the cache",
    cure: str = "train a head on this cache, or extract with the head's settings",
) -> None:
    """IdentityMismatch, naming the fields, if `identity` is of other priors than those the head was trained on.

    what, cure: what of, and what is to be done.
    """
    if head.priors is None:
        raise IdentityMismatch(f"{where} does not say which priors it is for; train it again, or import it for a cache")
    # which images were embedded does not matter to a head, how they were does
    if found := differing(content_of(head.priors), content_of(identity)):
        fields = "; ".join(f"{each.field}: the head has {each.stored}, {what} {each.given}" for each in found)
        raise IdentityMismatch(f"the head in {where} was trained on other priors than these: {fields}; {cure}")


def _write(file: Path, value: dict[str, Any]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=1) + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


def learned_keywords(record: dict[str, Any]) -> bool:
    """False where a head's record says that its keyword selector, if it has one, is as it was initialised.

    It learns from captions alone; a published head has none. What has no such record is believed.
    """
    taught = (row for row in record.get("data", ()) if row["split"] == "train" and row["task"] in CAPTIONS)
    if any(row["samples"] > row["failed"] for row in taught):
        return True
    if "provenance" in record:
        return not str(record["provenance"].get("selector", "")).startswith("untrained")
    return "data" not in record or "init_from" in record
