"""Grounding heads: what turns cached priors into masks and keywords, behind one small interface (`base.Head`)."""

from __future__ import annotations

from pathlib import Path

from manifests.errors import ModelError
from stages.train_head.heads.base import Head, read_description
from stages.train_head.heads.grounding_head import GroundingHead

HEADS: dict[str, type[Head]] = {head.name: head for head in (GroundingHead,)}


def load_head(folder: Path) -> Head:
    """The stored head of `folder`, whichever of HEADS it is; on the CPU, in eval mode."""
    name = read_description(folder)["head"]
    if name not in HEADS:
        raise ModelError(f"{folder} holds a head {name!r}; known: {', '.join(HEADS)}")
    return HEADS[name].load(folder)
