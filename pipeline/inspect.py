"""`run_pipeline.py lmms`: the known LMMs."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class LMMs:
    """List the LMMs that --lmm knows: stored grid, channels (layers x heads), bytes of attention per object, views."""


def run_lmms(_: LMMs) -> None:
    from stages.extract.grids import GRIDS
    from stages.extract.presets import PRESETS, resolve_lmm

    print(f"{'name':<22} {'stored':<7} {'channels':>14} {'bytes/object':>13}  {'--views':<8} {'SAM':<6} source")
    rows = []
    for preset in (resolve_lmm("tiny"), *PRESETS.values()):
        height, width = preset.grid
        channels = f"{preset.attention_layers}x{preset.heads}={preset.channels}"
        views = "1 or 2" if GRIDS[preset.family].fine is not None else "1"
        source = "(in this repository)" if preset.name == "tiny" else preset.source
        print(
            f"{preset.name:<22} {height}x{width:<4} {channels:>14} {preset.object_bytes:>13,}  {views:<8} "
            f"{preset.sam:<6} {source}"
        )
        rows.append({
            "name": preset.name, "source": source, "family": preset.family, "grid": preset.grid,
            "channels": preset.channels, "bytes_per_object": preset.object_bytes, "views": views, "sam": preset.sam,
        })  # fmt: skip
    print(json.dumps({"lmms": rows}))
