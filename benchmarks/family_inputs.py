"""Images and texts for the tiny checkpoints of `benchmarks.families`, as their own processors make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from stages.extract.attention import WordRows
from stages.extract.grids import grid_of, image_token_id

TEXTS: Final = ("the red ring left of the star", "the grass .")
SIZES: Final = ((96, 60), (64, 112))  # width, height


def family_inputs(
    folder: Path, config: Any, side: str, *, only: int | None = None
) -> tuple[dict[str, Any], list[WordRows]]:
    """Model inputs of two images of different sizes with texts of different lengths, two objects each.

    side: where the shorter one is padded, left or right; or none: the same text and size twice. only: one of the two.
    """
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    texts = list(TEXTS)
    if side == "none":
        images, texts = [i.resize(SIZES[0]) for i in images], [TEXTS[0]] * 2
    if only is not None:
        images, texts = [images[only]], [texts[only]]
    # what stands for the image in a prompt has different names; Gemma 3's begins the image, Aya's is not the column's
    name = "boi_token" if config.model_type == "gemma3" else "image_token"
    prompt = getattr(processor, name) + " look ! "
    inputs = processor(
        text=[prompt + text for text in texts], images=[[image] for image in images], padding=True,
        padding_side="left" if side == "left" else "right", return_tensors="pt", **grid_of(config).options,
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
