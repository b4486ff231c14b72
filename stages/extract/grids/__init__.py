"""Which columns of an LMM's input are the image, and their grid: one file per grid family, chosen by `model_type`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Final

from manifests.errors import ModelError
from stages.extract.grids import anyres, crops, dynamic, square, tiles
from stages.extract.grids.view import Cells, Shown, View

__all__ = ["GRIDS", "Grid", "Shown", "View", "grid_of", "image_token_id"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """How one family shows an image to its text decoder."""

    views: Callable[[Shown], list[View]]
    """The views of the whole image: the coarse one, then the fine one where there is one."""
    options: dict[str, Any] = field(default_factory=dict)
    """For the processor: no tiles, one view of the whole image."""
    fine: dict[str, Any] | None = None
    """For the processor: a fine view beside the coarse one; None for families that have one view only."""
    tiles: Callable[[Any, tuple[int, int]], Cells] | None = None
    """(image processor, (width, height)) -> (rows, columns) of an image's tiles under `fine`."""
    cells: Callable[[Any], Cells] | None = None
    """config -> (h, w) of the first view, where it is the same for every image."""
    answer_type: int = 0
    """Token type of the answer, for families that have token types: 0 is text, 1 is PaliGemma's causal suffix."""

    def processor_options(self, views: int) -> dict[str, Any]:
        """What the processor is called with for one view, or for two."""
        return self.options if views == 1 else self.fine or {}

    def tiles_of(self, processor: Any, size: tuple[int, int], views: int) -> Cells:
        """(rows, columns) of the tiles of an image of `size` (width, height) pixels."""
        return self.tiles(processor, size) if self.tiles and views > 1 else (1, 1)


LLAVA: Final = Grid(views=square.padded, cells=square.cells())
_PADDED: Final = Grid(views=square.padded_rounding, cells=square.cells())
_ANYRES: Final = Grid(views=anyres.views, fine={}, cells=square.cells())  # always tiled: so it was trained
_THW: Final = Grid(views=dynamic.from_thw)
_SPLITTING: Final = Grid(
    views=tiles.views,
    cells=square.cells(lambda c: c.scale_factor),
    options={"do_image_splitting": False},
    fine={"do_image_splitting": True},
    tiles=tiles.splits,
)


def _cropping(shrink: Callable[[Any], int]) -> Grid:
    """Families whose processors know `crop_to_patches`; `shrink`: patches that one token stands for, a side."""
    options = {"crop_to_patches": False}
    fine = {"crop_to_patches": True}
    return Grid(views=tiles.views, cells=square.cells(shrink), options=options, fine=fine, tiles=tiles.canvas)


GRIDS: Final[dict[str, Grid]] = {
    "llava": LLAVA,
    "vipllava": LLAVA,
    "deepseek_vl": _PADDED,
    "deepseek_vl_hybrid": _PADDED,
    "janus": _PADDED,
    "gemma3": Grid(
        views=square.stretched,
        cells=square.cells(lambda c: _side(c) // isqrt(c.mm_tokens_per_image)),
        options={"do_pan_and_scan": False},
    ),
    "paligemma": Grid(views=square.stretched, cells=square.cells(), answer_type=1),
    "internvl": _cropping(lambda c: round(1 / c.downsample_ratio)),
    "aya_vision": _cropping(lambda c: c.downsample_factor),
    "cohere2_vision": _cropping(lambda c: c.downsample_factor),
    "llama4": Grid(
        views=square.padded_corner,
        cells=square.cells(lambda c: round(1 / c.vision_config.pixel_shuffle_ratio)),
        options={"max_patches": 1},
    ),
    "idefics3": _SPLITTING,
    "smolvlm": _SPLITTING,
    "llava_next": _ANYRES,
    "llava_onevision": _ANYRES,
    "qwen2_vl": _THW,
    "qwen2_5_vl": _THW,
    "qwen3_vl": _THW,
    "qwen3_5": _THW,
    "glm4v": _THW,
    "gemma4": Grid(views=dynamic.from_positions),
    "mistral3": Grid(views=dynamic.from_pixels),
    "lfm2_vl": Grid(
        views=tiles.with_thumbnail,
        options={"do_image_splitting": False},
        fine={"do_image_splitting": True},
        tiles=tiles.layout,
    ),
    "molmo2": Grid(views=crops.views, fine={}, cells=crops.cells),
}
_CROSS: Final = "reads the image by cross-attention: its words do not attend to image tokens"
_QUERIES: Final = "sees the image through learned queries, which have no place in it"
REFUSED: Final[dict[str, str]] = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "kosmos-2": _QUERIES,
}
PIXTRAL: Final = Grid(views=dynamic.from_pixels)  # a LLaVA whose vision tower takes images of any shape


def _side(config: Any) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def grid_of(config: Any) -> Grid:
    """The grid of a model's family; ModelError for one without priors, and for an unknown one: what it needs."""
    family = config.model_type
    if family in REFUSED:
        raise ModelError(f"the family {family!r} {REFUSED[family]}; there is no attention prior to extract")
    if family not in GRIDS:
        raise ModelError(
            f"LMMs of the family {family!r} are not known: a function in stages/extract/grids/ would have to say "
            f"which columns are the image and their grid; known are {', '.join(sorted(GRIDS))}"
        )
    if config.vision_config is None:  # optional in Gemma 4
        raise ModelError(f"this checkpoint of the family {family!r} has no vision tower: it reads no images")
    return PIXTRAL if config.vision_config.model_type == "pixtral" and family == "llava" else GRIDS[family]


def image_token_id(config: Any) -> int:
    """The id that marks the image's columns in the input ids."""
    names = ("image_token_id", "image_token_index", "image_patch_id")
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    if found is None:
        raise ModelError(f"the configuration of {config.model_type} names no image token ({', '.join(names)})")
    return int(found)
