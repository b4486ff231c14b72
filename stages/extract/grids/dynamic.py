"""One view whose grid follows the image's size and aspect: Qwen-VL, GLM-4V, Gemma 4, Mistral 3 and Pixtral."""

from __future__ import annotations

from stages.extract.grids.view import Shown, View


def from_thw(shown: Shown) -> list[View]:
    """Qwen2-VL to Qwen3.5-VL, GLM-4V. inputs: `image_grid_thw` int64 [1, 3], patches before merging."""
    merge = shown.config.vision_config.spatial_merge_size
    _, height, width = (int(n) for n in shown.inputs["image_grid_thw"][0])
    return [View(height=height // merge, width=width // merge, columns=shown.columns)]


def from_pixels(shown: Shown) -> list[View]:
    """Mistral 3, Pixtral. inputs: `image_sizes` int64 [1, 2], pixels after resizing. Row breaks are no columns."""
    cell = shown.config.vision_config.patch_size * getattr(shown.config, "spatial_merge_size", 1)
    height, width = (int(n) // cell for n in shown.inputs["image_sizes"][0])
    return [View(height=height, width=width, columns=shown.columns)]


def from_positions(shown: Shown) -> list[View]:
    """Gemma 4. inputs: `image_position_ids` int64 [1, most, 2], (column, row) of every patch before pooling, -1 behind.

    The columns are the pooled patches, row-major.
    """
    last = shown.inputs["image_position_ids"][0].amax(0).tolist()
    width, height = ((n + 1) // shown.config.vision_config.pooling_kernel_size for n in last)
    return [View(height=height, width=width, columns=shown.columns)]
