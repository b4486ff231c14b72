"""Images and texts for the tiny checkpoints of `benchmarks.families`, as their own processors make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from stages.extract.attention import WordRows
from stages.extract.grids import grid_of, image_token_id

TEXTS: Final = ("the red ring left of the star", "the grass .", "a small blue disc", "the large star right of the ring")
SIZES: Final = ((96, 60), (64, 112), (112, 112), (260, 140))  # width, height


def family_inputs(
    folder: Path, config: Any, side: str, *, only: int | None = None, views: int = 1
) -> tuple[dict[str, Any], list[WordRows]]:
    """Model inputs of four images of different sizes with texts of different lengths, two objects each.

    side: where the shorter ones are padded, left or right; or none: the same text and size four times.  only: one of
    the four.  views: 2 with the images' tiles.
    """
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    texts = list(TEXTS)
    if side == "none":
        images, texts = [i.resize(SIZES[0]) for i in images], [TEXTS[0]] * len(TEXTS)
    if only is not None:
        images, texts = [images[only]], [texts[only]]
    # what stands for the image in a prompt has different names; Gemma 3's begins the image, Aya's is not the column's
    name = "boi_token" if config.model_type == "gemma3" else "image_token"
    prompt = getattr(processor, name) + " look ! "
    options = grid_of(config).processor_options(views)
    inputs = processor(
        text=[prompt + text for text in texts], images=[[image] for image in images], padding=True,
        padding_side="left" if side == "left" else "right", return_tensors="pt", **options,
    )  # fmt: skip
    inputs.pop("labels", None)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}  # Llama 4's are bfloat16
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        last = int(mask.nonzero()[-1])
        columns = (ids == image_token_id(config)).nonzero()[:, 0].tolist()
        assert columns, f"no image columns for {config.model_type}"
        words = range(last - 3, last + 1)  # of the text, whatever the family's template puts before it
        rows.append(WordRows(objects=[words[1:3], words[3:]], columns=columns, answer=words))
    return inputs, rows
