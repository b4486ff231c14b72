"""The grid of every family: change one block of the image, and see the right cell's vision feature move most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPConfig, Gemma4Config, MllamaConfig

from benchmarks.families import FAMILIES, save_family
from manifests.errors import ModelError
from stages.extract.capture import text_decoder
from stages.extract.grids import LLAVA, Shown, View, grid_of, image_token_id
from stages.extract.grids.view import square_view
from stages.extract.images import Box, pad_to_square
from stages.extract.repair import repaired

SIZES = ((112, 56), (56, 112), (112, 112), (260, 140))  # width, height; the last one is tiled by every family
CELLS = 16  # of a view that are changed, in random order


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = save_family(request.param, tmp_path_factory.mktemp("family"))
    model: Any = AutoModelForImageTextToText
    return repaired(model.from_pretrained(folder, dtype=torch.float32).eval()), AutoProcessor.from_pretrained(folder)


def embeddings(model: Any, processor: Any, pixels: np.ndarray, count: int) -> tuple[torch.Tensor, list[View]]:
    """The decoder's input embeddings [L, d], and the views of the image uint8 [height, width, 3], shown in `count`."""
    config, image = model.config, Image.fromarray(pixels)
    grid = grid_of(config)
    if grid is LLAVA:  # F-LMM's preparation instead of the processor's crop
        image = Image.fromarray(pad_to_square(image, config.vision_config.image_size, (0.5, 0.5, 0.5))[0])
    token = processor.boi_token if config.model_type == "gemma3" else getattr(processor, "image_token", "<image>")
    inputs = dict(
        processor(text=[f"{token} a"], images=[[image]], return_tensors="pt", **grid.processor_options(count))
    )
    inputs.pop("labels", None)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    seen: list[torch.Tensor] = []
    handle = text_decoder(model).register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    handle.remove()
    columns = (inputs["input_ids"][0] == image_token_id(config)).nonzero()[:, 0].tolist()
    size = pixels.shape[1], pixels.shape[0]
    tiles = grid.tiles_of(getattr(processor, "image_processor", None), size, count)
    return seen[0][0], grid.views(Shown(columns=columns, size=size, inputs=inputs, config=config, tiles=tiles))


def block_of(view: View, row: int, cell: int, width: int, height: int) -> tuple[slice, slice] | None:
    """The pixels (rows, columns) of the image under one cell; None where most of the cell shows padding."""
    box = view.box or Box(top=0, left=0, height=height, width=width, size=0)
    side = (view.box.size, view.box.size) if view.box else (height, width)
    edges = []
    for k, cells, extent, start, shown, pixels in (
        (row, view.height, side[0], box.top, box.height, height),
        (cell, view.width, side[1], box.left, box.width, width),
    ):
        low, high = (min(max((k + end) * extent / cells - start, 0), shown) for end in (0, 1))
        if high - low < 0.6 * extent / cells:
            return None
        edges.append(slice(round(low * pixels / shown), round(high * pixels / shown)))
    return edges[0], edges[1]


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_block_of_pixels_moves_its_cell_most(family: tuple[Any, Any], size: tuple[int, int]) -> None:
    counts = [1] if grid_of(family[0].config).fine is None else [1, 2]
    width, height = size
    rng = np.random.default_rng(1)
    image = rng.integers(100, 156, (height, width, 3), dtype=np.uint8)
    for count in counts:
        before, views = embeddings(*family, image, count)
        assert len(views) == 2 or count == 1 or size != SIZES[-1]
        for view in views[:count]:
            blocks = {at: block for at in np.ndindex(view.height, view.width) if (block := block_of(view, *at, *size))}
            found = []
            for at in rng.permutation(list(blocks))[:CELLS].tolist():
                changed, block = image.copy(), blocks[tuple(at)]
                changed[block] = 255 * rng.integers(0, 2, (*changed[block].shape[:2], 1))
                moved = (embeddings(*family, changed, count)[0] - before).norm(dim=-1)[list(view.columns)]
                found.append(list(divmod(int(moved.argmax()), view.width)) == at)
            # random towers mix cells a little; a transposed, flipped or shifted grid gets a quarter right at most
            assert len(found) >= 4 and np.mean(found) >= 0.8


def test_unknown_families_and_odd_grids_are_refused() -> None:
    with pytest.raises(ModelError, match="family 'mllama' reads the image by cross-attention"):
        grid_of(MllamaConfig())
    with pytest.raises(ModelError, match="family 'clip' are not known: a function in stages/extract/grids/ would have"):
        grid_of(CLIPConfig())
    with pytest.raises(ModelError, match="'gemma4' has no vision tower"):
        grid_of(Gemma4Config())
    with pytest.raises(ModelError, match="7 image columns for a grid of 2 x 2"):
        square_view(range(7))
