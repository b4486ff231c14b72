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
from stages.extract.attention import Merge, WordRows
from stages.extract.capture import AttentionCapture, Captured
from stages.extract.checkpoint import first_line, local_folder, unloadable
from stages.extract.grids import View
from stages.extract.presets import STORED, LMMPreset
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
    """A frozen Hugging Face LMM, its processor and its attention capture.

    device: where the inputs go, and the model unless device_map says otherwise.  dtype: of the weights; default: the
    preset's.  device_map: as accelerate takes it, for models larger than one GPU: "auto" spreads the layers evenly.
    Raises ModelError, in one line with the cure, for a checkpoint that can not be loaded or is another than the preset.
    """

    def __init__(
        self,
        preset: LMMPreset,
        device: str = "cpu",
        dtype: str | None = None,
        merge: Merge = "mean",
        device_map: str | dict[str, str | int] | None = None,
        processor: LMMProcessor | None = None,
    ):
        self.preset, self.device = preset, torch.device(device)
        self.model = self._load(getattr(torch, dtype or preset.dtype), device_map)
        self.processor = processor or LMMProcessor(preset)
        self.capture = AttentionCapture(self.model, merge)
        text = self.capture.config
        loaded = {"layers": text.num_hidden_layers, "heads": text.num_attention_heads, "width": text.hidden_size}
        loaded["attention_layers"] = len(self.capture.attentions)
        if self.processor.grid.cells and preset.grid != STORED:  # 64 x 64: --store-grid 64, or two views
            loaded["grid"] = self.processor.grid.cells(self.processor.config)
        wrong = [f"{k} {v}, the preset says {getattr(preset, k)}" for k, v in loaded.items() if v != getattr(preset, k)]
        if wrong:
            raise ModelError(f"{preset.source} has {'; '.join(wrong)}")

    def _load(self, dtype: torch.dtype, device_map: str | dict[str, str | int] | None) -> Any:
        from transformers import AutoModelForImageTextToText

        auto: Any = AutoModelForImageTextToText
        trusted, attention = self.preset.trust_remote_code, self.preset.attention
        folder = local_folder(self.preset.source, weights=True, code=trusted)
        # auto: no attn_implementation, transformers picks sdpa wherever it can run the model
        chosen = {} if attention == "auto" else {"attn_implementation": attention}
        try:
            model = auto.from_pretrained(
                folder, dtype=dtype, device_map=device_map, trust_remote_code=trusted, use_safetensors=True, **chosen
            )
            return model if device_map else model.to(self.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(
                f"{folder} does not fit into the memory of {self.device} ({first_line(error)}): "
                "give --dtype bfloat16, --gpus-per-worker 2 or more, or a --device with more"
            ) from error
        except Exception as error:  # what damaged files make safetensors and transformers raise has no common base
            if chosen and isinstance(error, (ImportError, ValueError)):
                raise ModelError(
                    f"--attention {attention} can not run here ({first_line(error)}): leave it out, or give sdpa"
                ) from error
            raise unloadable(folder, "weights", error, trusted) from error

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
