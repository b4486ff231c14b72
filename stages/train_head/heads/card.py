"""The model card of a head: what is known of it, made from the head alone; what is not known is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, Final

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from manifests.errors import ModelError
from stages.extract.presets import PRESETS, TINY
from stages.train_head.heads.base import Head
from stages.train_head.heads.card_results import result_tables, results
from stages.train_head.heads.checkpoint import learned_keywords

LIBRARY: Final = "frozen-lmm-grounding"
UNSPECIFIED: Final = "unspecified by the author"
SHARED_IMAGES: Final = ("refcoco", "png")  # datasets whose splits share images with one another's


def model_card(head: Head, repo: str | None = None) -> ModelCard:
    """`repo`: user/name, for the commands in it. ModelError: the record or the evaluation are not this program's."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; what comes from data goes through `cell` and `code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "code": code}
    try:
        return ModelCard(environment.get_template("card.md.j2").render(_facts(head, repo)))
    except (KeyError, TypeError, AttributeError, ValueError, TemplateError) as error:
        raise ModelError(
            f"no model card for this head {head.name!r}: its record or evaluation is not of this program "
            f"({type(error).__name__}: {error}); train or evaluate it again"
        ) from error


def _facts(head: Head, repo: str | None) -> dict[str, Any]:
    from stages.train_head.heads import HEADS

    record, identity, name = head.record, head.priors or {}, lmm_name(head.record)
    return {
        "data": card_data(head, repo).to_yaml(),
        "repo": repo or "USER/NAME",
        "head": head,
        "about": " ".join((type(head).__doc__ or "").split()),
        "lmm": name,
        "lmm_rows": lmm_rows(identity),
        "sam_rows": sam_rows(identity) if head.refined_size is not None else [],
        "head_rows": head_rows(head),
        "record": record,
        "recipe": list(record.get("recipe", {}).items()),
        "validations": validation_rows(record.get("validations", [])),
        "chosen": record.get("validation"),
        "provenance": list(record.get("provenance", {}).items()),
        "license": license_of(record),
        "evaluation": head.evaluation,
        "tables": result_tables(head.evaluation or {}),
        "extract": extract_command(record, identity),
        "own_class": None if HEADS.get(head.name) is type(head) else _word(record.get("head", "MODULE:CLASS")),
        "embedded": name == "tiny",
        "shared_images": any(_dataset(row).startswith(SHARED_IMAGES) for row in record.get("data", [])),
        "no_captions": not learned_keywords(record),
    }


def card_data(head: Head, repo: str | None) -> ModelCardData:
    """The metadata block; the numbers in it are those of metrics.json, in [0, 1], of the head's last masks."""
    name, found = lmm_name(head.record), results(head.evaluation or {})
    return ModelCardData(
        license="other" if _is_other(head.record) else license_of(head.record),
        license_name=license_of(head.record) if _is_other(head.record) else None,
        library_name=LIBRARY,
        pipeline_tag="image-segmentation",
        tags=["grounding", "referring-expression-segmentation", "frozen-lmm", head.name],
        # only ids that are known to be the Hub's: a path can look like one
        base_model=name if name in {preset.source for preset in PRESETS.values()} else None,
        model_name=(repo or head.name).rpartition("/")[2] if found else None,
        eval_results=found or None,
    )


def license_of(record: dict[str, Any]) -> str:
    """Of imported weights theirs, else what the author said (`push-head --license`)."""
    return str(record.get("provenance", {}).get("licence") or record.get("license") or UNSPECIFIED)


def _is_other(record: dict[str, Any]) -> bool:
    return "provenance" in record or "license" not in record


def lmm_name(record: dict[str, Any]) -> str:
    """Which LMM: a Hub id, the last part of a folder's path, "tiny" for the embedded one, "" where it is not known."""
    name = str(record.get("lmm", "unknown"))
    if PurePath(name).parts[-4:] == (*TINY.parts[-3:], "lmm"):
        return "tiny"
    return PurePath(name).name if PurePath(name).is_absolute() else "" if name == "unknown" else name


def lmm_rows(identity: dict[str, Any]) -> list[tuple[str, str]]:
    """What a cache must have been extracted with: every setting of the identity, and the weights' digests."""
    lmm = identity.get("lmm", {})
    rows = [(name, json.dumps(value)) for name, value in lmm.items() if name != "files"]
    rows += [(name, json.dumps(value)) for name, value in identity.items() if name not in ("lmm", "images")]
    weights = {name: digest for name, digest in lmm.get("files", {}).items() if name.endswith(".safetensors")}
    return rows + [(f"sha256 of {name}", str(digest)) for name, digest in weights.items()]


def sam_rows(identity: dict[str, Any]) -> list[tuple[str, str]]:
    """Name, sizes and digest of the SAM that made the embeddings."""
    sam = (identity.get("images") or {}).get("identity", {}).get("sam", {})
    return [(name if name != "weights" else "sha256 of the weights", str(value)) for name, value in sam.items()]


def head_rows(head: Head) -> list[tuple[str, str]]:
    """Size, what it sees, and its options."""
    shape = {name: value for name, value in asdict(head.shape).items() if value is not None}
    rows = [("parameters", f"{sum(p.numel() for p in head.parameters()):,}")]
    rows += [(name, json.dumps(value)) for name, value in shape.items()]
    return rows + [(name, json.dumps(value)) for name, value in asdict(head.config).items() if name != "sam"]


def validation_rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The validations as a table, its head first; [] where there were none."""
    names = ["epoch", "step", "loss"] + sorted({n for each in records for n in each if n.startswith("val_")})
    if len(names) == 3:
        return []
    return [names, *[[_number(each.get(name)) for name in names] for each in records]]


def extract_command(record: dict[str, Any], identity: dict[str, Any]) -> str:
    """The options of `extract` that make priors of this identity; data and places are the user's."""
    source = str(record.get("lmm", ""))
    lmm = next((preset.name for preset in PRESETS.values() if preset.source == source), lmm_name(record))
    if not lmm or (PurePath(source).is_absolute() and lmm != "tiny"):
        lmm = "LMM"
    settings, sam = identity.get("lmm", {}), (identity.get("images") or {}).get("identity", {}).get("sam", {})
    options = {"lmm": lmm, "dtype": settings.get("dtype"), "merge": identity.get("merge"), "sam": sam.get("name")}
    if settings.get("attention", "auto") != "auto":
        options["attention"] = settings["attention"]
    if settings.get("views", 1) != 1:
        options["views"] = settings["views"]
    return " ".join(f"--{name} {_word(value)}" for name, value in options.items() if value is not None)


def cell(value: Any) -> str:
    """A text inside a Markdown table or sentence: one line, no column, no tag, no link of its own."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> str:
    """The same, set as code."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(value)


def _word(value: Any) -> str:
    """One word of a command line, harmless wherever it is pasted."""
    return re.sub(r"[^\w./:+-]", "_", str(value))


def _dataset(row: dict[str, Any]) -> str:
    return str(row["dataset"])
