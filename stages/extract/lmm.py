"""The frozen LMM as extraction uses it: load any family that transformers has, run a batch, capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import get_max_memory
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from manifests.errors import ModelError
from manifests.schema import Reply
from stages.extract.attention import Merge, WordRows
from stages.extract.capture import AttentionCapture, Captured
from stages.extract.checkpoint import first_line, local_folder, unloadable
from stages.extract.presets import STORED, LMMPreset
from stages.extract.processor import Asked, LMMInput, LMMProcessor
from stages.extract.replies import reply_of


def require_attention(attention: str, dtype: str) -> None:
    """Flash attention only as it is installed: transformers would fetch a kernel from the hub in its place."""
    installed = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if attention not in installed:
        return
    if not installed[attention]():
        raise ModelError(f"--attention {attention}: it is not installed, or there is no GPU: leave it out")
    if dtype == "float32":
        raise ModelError(f"--attention {attention} takes no float32: give --dtype bfloat16 or float16")


class FrozenLMM:
    """A frozen Hugging Face LMM, its processor and its attention capture.

    device: where the inputs go, and the model with one GPU or none.  dtype: of the weights; default: the preset's.
    gpus: more than one spreads the layers evenly over the first so many.  device_map: or as accelerate takes it.
    Loading sets torch's default dtype for all threads: nothing else may compute meanwhile.
    Raises ModelError, in one line with the cure, for a checkpoint that can not be loaded or is another than the preset.
    """

    def __init__(
        self,
        preset: LMMPreset,
        device: str = "cpu",
        dtype: str | None = None,
        merge: Merge = "mean",
        *,
        gpus: int = 1,
        device_map: dict[str, str | int] | None = None,
        processor: LMMProcessor | None = None,
    ):
        self.preset, self.device = preset, torch.device(device)
        options: dict[str, Any] = {"dtype": getattr(torch, dtype or preset.dtype), "device_map": device_map}
        if gpus > 1:
            torch.cuda.empty_cache()  # what SAM has freed is room
            room = {number: free for number, free in get_max_memory().items() if number in range(gpus)}
            options |= {"device_map": "auto", "max_memory": room}
        self.model = self._load(options)
        placed = getattr(self.model, "hf_device_map", {})  # none where all of it went to one
        if gpus > 1 and not set(placed.values()) <= set(range(gpus)):
            raise ModelError(f"{preset.source} does not fit into {gpus} GPUs: give a larger --gpus-per-worker")
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

    def _load(self, options: dict[str, Any]) -> Any:
        from transformers import AutoConfig, AutoModelForImageTextToText

        auto: Any = AutoModelForImageTextToText
        trusted, attention = self.preset.trust_remote_code, self.preset.attention
        require_attention(attention, str(options["dtype"]).removeprefix("torch."))
        folder = local_folder(self.preset.source, weights=True, code=trusted)
        # auto, None: transformers picks sdpa wherever it can run the model, whatever the checkpoint's config asks for
        options |= {"attn_implementation": None if attention == "auto" else attention}
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)  # given, or its wish would stand
            model = auto.from_pretrained(
                folder, config=config, trust_remote_code=trusted, use_safetensors=True, **options
            )
            return model if options["device_map"] else model.to(self.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(
                f"{folder} does not fit into the memory of {self.device} ({first_line(error)}): "
                "give --dtype bfloat16, --gpus-per-worker 2 or more, or a --device with more"
            ) from error
        except Exception as error:  # what damaged files make safetensors and transformers raise has no common base
            if attention != "auto" and isinstance(error, (ImportError, ValueError)):
                raise ModelError(
                    f"--attention {attention} can not run here ({first_line(error)}): leave it out, or give sdpa"
                ) from error
            raise unloadable(folder, "weights", error, trusted) from error

    def synchronise(self) -> None:
        """Wait for every GPU that holds a part of the model."""
        placed = getattr(self.model, "hf_device_map", {"": self.device})
        for device in set(placed.values()):
            if isinstance(device, int) or str(device).startswith("cuda"):
                torch.cuda.synchronize(device)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3]: the image as `LMMInput` takes it."""
        return self.processor.prepare(image)

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor's inputs where the model takes them, pixels in its dtype."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        return {name: v.to(self.model.dtype) if v.is_floating_point() else v for name, v in moved.items()}

    def collate(self, batch: Sequence[LMMInput], length: int) -> tuple[dict[str, Tensor], list[WordRows]]:
        """Model inputs right-padded to `length` tokens, and where each sample's words and image are in them."""
        inputs, rows = self.processor.collate(batch, length)
        return self.on_device(inputs), rows

    def run(self, batch: Sequence[LMMInput], length: int | None = None, past: Any = None) -> Captured:
        """One forward pass over a batch; see `Captured` for shapes. `length`: the plan's padded length."""
        inputs, rows = self.collate(batch, length or max(s.length for s in batch))
        return self.capture.run(inputs, rows)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer: of the checkpoint's generation_config, else the tokenizer's."""
        found = self.model.generation_config.eos_token_id
        found = self.processor.tokenizer.eos_token_id if found is None else found
        return [found] if isinstance(found, int) else list(found or ())

    def reply(self, asked: Sequence[Asked], max_new_tokens: int = 256) -> list[Reply]:
        """What the LMM says to each question, together in one batch: always the likeliest token (greedy).

        Nothing that the checkpoint's generation_config asks for has a say but the tokens that end an answer; the
        image's token is never said, for it would be read as one. An answer that is cut off at `max_new_tokens`, or
        where the LMM's context ends, is not `finished`. A batch that does not fit a GPU is halved.
        """
        try:
            said = self.generate(asked, max_new_tokens)
        except torch.OutOfMemoryError:
            if len(asked) == 1:
                raise
            said = []
        if not said:
            torch.cuda.empty_cache()
            half = len(asked) // 2
            return self.reply(asked[:half], max_new_tokens) + self.reply(asked[half:], max_new_tokens)
        return [reply_of(self.processor.tokenizer, ids, self.ends) for ids in said]

    def speak(
        self, asked: Asked, max_new_tokens: int = 256, *, own_settings: bool = False, seed: int = 0, on_text: Any = None
    ) -> Any:
        """INTERIM"""
        from types import SimpleNamespace

        (reply,) = self.reply([asked], max_new_tokens)
        if on_text:
            on_text(reply.text)
        return SimpleNamespace(reply=reply, past=None)

    @torch.no_grad()
    def generate(self, asked: Sequence[Asked], max_new_tokens: int) -> list[list[int]]:
        """The token ids of each answer, with the one that ends it and anything behind that."""
        inputs = self.on_device(self.processor.collate_prompts(asked))
        room = [self.processor.room(each.prompt, max_new_tokens) for each in asked]
        own = self.model.generation_config
        # what a given configuration leaves open would be taken from the model's: so it is put in the place of that one
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(room),
            suppress_tokens=[self.processor.image_id],
            eos_token_id=self.ends,
            pad_token_id=0,
        )
        try:
            # not the class's own, which Janus has for the sake of the images that it makes
            output = GenerationMixin.generate(self.model, **inputs)
        finally:
            self.model.generation_config = own
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [ids[:most] for ids, most in zip(answers, room, strict=True)]
