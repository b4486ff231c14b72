"""One view whose grid follows the image's size and aspect: Qwen-VL, GLM-4V, Mistral 3 and Pixtral."""

from __future__ import annotations

from stages.extract.grids.view import Shown, View


def from_thw(shown: Shown) -> list[View]:
    """Qwen2-VL to Qwen3-VL, GLM-4V. inputs: `image_grid_thw` int64 [1, 3], patches before merging."""
    merge = shown.config.vision_config.spatial_merge_size
    _, height, width = (int(n) for n in shown.inputs["image_grid_thw"][0])
    return [View(height=height // merge, width=width // merge, columns=shown.columns)]


def from_pixels(shown: Shown) -> list[View]:
    """Mistral 3, Pixtral. inputs: `image_sizes` int64 [1, 2], pixels after resizing. Row breaks are no columns."""
    cell = shown.config.vision_config.patch_size * getattr(shown.config, "spatial_merge_size", 1)
    height, width = (int(n) // cell for n in shown.inputs["image_sizes"][0])
    return [View(height=height, width=width, columns=shown.columns)]
