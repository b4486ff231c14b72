"""Which layer and head of the LMM a map of a cache is, pruned or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cache.derive import original_maps


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One map. All numbers count from 0."""

    map: int
    """Its number in this cache: what `cache prune --channels` takes."""
    original: int
    """Its number in the cache that was extracted: (view · layers + layer) · heads + head."""
    view: int
    """0: the whole image (the only one unless extracted with --views 2); 1: the tiles."""
    layer: int
    """Of the layers that have attention: a hybrid LMM has others between them."""
    head: int

    def __str__(self) -> str:
        return f"L{self.layer} H{self.head}" + (f" view {self.view}" if self.view else "")

    def record(self) -> dict[str, int]:
        """The fields as JSON."""
        return asdict(self)


def shape_of(identity: Mapping[str, Any]) -> tuple[int, int, int]:
    """(views, layers with attention, heads) of the LMM that a cache was extracted from."""
    lmm = identity["lmm"]
    return lmm.get("views", 1), lmm.get("attention_layers", lmm["layers"]), lmm["heads"]


def labels_of(identity: Mapping[str, Any]) -> list[Label]:
    """The label of every map of a cache with this identity, in order."""
    views, layers, heads = shape_of(identity)
    return [
        Label(
            map=number, original=original, view=original // (layers * heads), layer=original // heads % layers,
            head=original % heads,
        )
        for number, original in enumerate(original_maps(identity, views * layers * heads))
    ]  # fmt: skip
