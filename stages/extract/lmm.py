"""The frozen LMM as extraction uses it: load any family that transformers has, run a batch, capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from manifests.errors import ModelError
from stages.extract.attention import AttentionCapture, Captured, Merge, WordRows
from stages.extract.checkpoint import first_line, local_folder, unloadable
from stages.extract.grids import View
from stages.extract.presets import LMMPreset
from stages.extract.processor import LMMProcessor, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class LMMInput:
    """One sample ready for the LMM. image: uint8 [height, width, 3] of `FrozenLMM.prepare`."""

    image: np.ndarray
    prompt: Prompt
    answer_ids: list[int]
    object_tokens: list[list[int]]
    """For each object the positions of its tokens in the answer."""

    @property
    def length(self) -> int:
        """Tokens of the whole input."""
        return len(self.prompt.ids) + len(self.answer_ids)

    @property
    def views(self) -> list[tuple[View, ...]]:
        """The views of each object's attention maps."""
        return [self.prompt.views] * len(self.object_tokens)


class FrozenLMM:
    """A frozen Hugging Face LMM, its processor and its attention capture."""

    def __init__(self, preset: LMMPreset, device: str = "cpu", dtype: str | None = None, merge: Merge = "mean"):
        from transformers import AutoModelForImageTextToText

        self.preset, self.device = preset, torch.device(device)
        folder = local_folder(preset.source, weights=True)
        auto: Any = AutoModelForImageTextToText
        try:
            # no attn_implementation: the baseline is what transformers picks, sdpa wherever it can run the model
            self.model = auto.from_pretrained(folder, dtype=getattr(torch, dtype or preset.dtype)).to(self.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(
                f"{folder} does not fit into the memory of {device} ({first_line(error)}): "
                "give --dtype bfloat16, or a --device with more"
            ) from error
        except Exception as error:  # what damaged files make safetensors and transformers raise has no common base
            raise unloadable(folder, "weights", error) from error
        self.processor = LMMProcessor(preset)
        self.capture = AttentionCapture(self.model, merge)
        text = self.capture.config
        loaded = {"layers": text.num_hidden_layers, "heads": text.num_attention_heads, "width": text.hidden_size}
        loaded["attention_layers"] = len(self.capture.attentions)
        wrong = [f"{k} {v}, the preset says {getattr(preset, k)}" for k, v in loaded.items() if v != getattr(preset, k)]
        if wrong:
            raise ModelError(f"{preset.source} has {'; '.join(wrong)}")

    def prepare(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3]: the image as `LMMInput` takes it."""
        return self.processor.prepare(image)

    def collate(self, batch: Sequence[LMMInput], length: int) -> tuple[dict[str, Tensor], list[WordRows]]:
        """Model inputs right-padded to `length` tokens, and where each sample's words and image are in them."""
        ids, mask = (torch.zeros(len(batch), length, dtype=torch.long) for _ in range(2))
        types = {name: torch.zeros(len(batch), length, dtype=torch.long) for name in batch[0].prompt.types}
        rows = []
        for b, sample in enumerate(batch):
            start = len(sample.prompt.ids)
            ids[b, : sample.length] = torch.tensor(sample.prompt.ids + sample.answer_ids)
            mask[b, : sample.length] = 1
            for name, values in sample.prompt.types.items():
                types[name][b, :start] = torch.tensor(values)
                types[name][b, start:] = self.processor.grid.answer_type
            rows.append(
                WordRows(
                    objects=[[start + p for p in positions] for positions in sample.object_tokens],
                    columns=[column for view in sample.prompt.views for column in view.columns],
                    answer=range(start, sample.length),
                )
            )
        inputs = {"input_ids": ids, "attention_mask": mask, **types}
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        for name, value in self.processor.pixels([s.image for s in batch], self.device).items():
            inputs[name] = value.to(self.model.dtype) if value.is_floating_point() else value
        return inputs, rows

    def run(self, batch: Sequence[LMMInput], length: int | None = None) -> Captured:
        """One forward pass over a batch; see `Captured` for shapes. `length`: the plan's padded length."""
        inputs, rows = self.collate(batch, length or max(s.length for s in batch))
        return self.capture.run(inputs, rows)
