"""Grounding heads: what turns cached priors into masks and keywords, behind one small interface (`base.Head`)."""

from __future__ import annotations

import importlib

from manifests.errors import PipelineError
from stages.train_head.heads.base import Head
from stages.train_head.heads.fusion_head import FusionHead
from stages.train_head.heads.grounding_head import GroundingHead
from stages.train_head.heads.linear import LinearHead
from stages.train_head.heads.localization_heads import LocalizationHeads
from stages.train_head.heads.unet import UNetHead

HEADS: dict[str, type[Head]] = {
    head.name: head for head in (GroundingHead, FusionHead, UNetHead, LinearHead, LocalizationHeads)
}


def head_class(name: str) -> type[Head]:
    """The head of that name, or the class that module:Class names: that runs the module's code.

    PipelineError: unknown, can not be imported, or not a head.
    """
    if name in HEADS:
        return HEADS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise PipelineError(f"--head {name}: known are {', '.join(HEADS)}, or module:Class for one of your own")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PipelineError(f"--head {name} can not be imported ({error}); is its folder in PYTHONPATH?") from None
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise PipelineError(f"--head {name} is no subclass of stages.train_head.heads.base.Head")
    for field in ("name", "Config"):
        if not hasattr(found, field):
            raise PipelineError(f"--head {name}: the class has no `{field}` (docs/new-head.md)")
    return found
