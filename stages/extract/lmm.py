"""The frozen LMM as extraction uses it: load any family that transformers has, run a batch, capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
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
from stages.extract.past import Past, first_positions, past_of
from stages.extract.presets import STORED, LMMPreset
from stages.extract.processor import Asked, LMMInput, LMMProcessor
from stages.extract.replies import reply_of
from stages.extract.speech import Pieces, Spoken, seeded


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
            raise ModelError(f"{preset.source} does not fit into {gpus} GPUs: give a larger --gpus-per-worker (--gpus)")
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
                "give --dtype bfloat16, --gpus-per-worker (--gpus) 2 or more, or a --device with more"
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

    def run(self, batch: Sequence[LMMInput], length: int | None = None, past: Past | None = None) -> Captured:
        """One forward pass over a batch; see `Captured` for shapes. `length`: the plan's padded length.

        past: what `speak` left of the prompt of a batch of one: neither its image nor its prompt is run again, and what
        is captured is the same but for rounding. ModelError where it is of another prompt.
        """
        if past is None:
            inputs, rows = self.collate(batch, length or max(s.length for s in batch))
            return self.capture.run(inputs, rows)
        (sample,) = batch
        if tuple(sample.prompt.ids) != past.ids:
            raise ModelError(
                f"the past is of another prompt ({len(past.ids)} tokens) than the answer ({len(sample.prompt.ids)}): "
                "run the answer without it"
            )
        return self.capture.run(self.on_device({"input_ids": torch.tensor([sample.answer_ids])}), [sample.rows], past)

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

    def generate(self, asked: Sequence[Asked], max_new_tokens: int) -> list[list[int]]:
        """The token ids of each answer, with the one that ends it and anything behind that."""
        inputs = self.on_device(self.processor.collate_prompts(asked))
        room = [self.processor.room(each.prompt, max_new_tokens) for each in asked]
        output = self._generated(inputs, self._greedy(max(room)))
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [ids[:most] for ids, most in zip(answers, room, strict=True)]

    def speak(
        self,
        asked: Asked,
        max_new_tokens: int = 256,
        *,
        own_settings: bool = False,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Spoken:
        """What the LMM says to one question, and the question's past for `run`. One answer at a time.

        As `reply` says it; own_settings: as the checkpoint's generation_config asks for (temperature, beams, …), but
        for the answer's length and end, and the image's token. What is sampled follows from `seed` alone.
        on_text: is given the answer's text piece by piece while it is generated, of beams all of it at the end; what it
        raises ends the answer.
        Raises ModelError where the LMM's context has no room for an answer, or where it can not run its own settings.
        """
        room, count = self.processor.room(asked.prompt, max_new_tokens), len(asked.prompt.ids)
        if room < 1:
            raise ModelError(
                f"the image and the conversation are {count} tokens, and the LMM's context has "
                f"{self.processor.context}: ask a shorter question, or begin anew"
            )
        settings = self._own(room) if own_settings else self._greedy(room)
        pieces = None
        if on_text is not None and settings.num_beams in (None, 1):
            pieces = Pieces(self.processor.tokenizer, self.ends, on_text)
        inputs = self.on_device(self.processor.collate_prompts([asked]))
        with seeded(seed), first_positions(self.capture.decoder) as positions:
            try:
                output = self._generated(inputs, settings, streamer=pieces, return_dict_in_generate=True)
            except (ImportError, ValueError) as error:
                if positions or not own_settings:  # settings are refused before anything runs
                    raise
                raise ModelError(
                    f"{self.preset.source} can not speak by its own settings ({first_line(error)}): let it say its "
                    "likeliest words, or correct its generation_config.json"
                ) from error
        reply = reply_of(self.processor.tokenizer, output.sequences[0, count:].tolist(), self.ends)
        if on_text is not None and pieces is None:
            on_text(reply.text)
        capture, cache = self.capture, output.get("cache")
        past = past_of(capture.config, capture.attentions, cache, asked.prompt.ids, positions[0])
        return Spoken(reply=reply, past=past)

    def _greedy(self, most: int) -> GenerationConfig:
        """Always the likeliest token, at most so many."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            suppress_tokens=[self.processor.image_id],
            eos_token_id=self.ends,
            pad_token_id=0,
        )

    def _own(self, most: int) -> GenerationConfig:
        """The checkpoint's own settings as they are, but for what an answer must have."""
        settings = deepcopy(self.model.generation_config)
        settings.update(
            num_return_sequences=1,
            max_length=None,
            max_new_tokens=most,
            suppress_tokens=[*(settings.suppress_tokens or ()), self.processor.image_id],
            eos_token_id=self.ends,
            pad_token_id=settings.pad_token_id or 0,
        )
        return settings

    @torch.no_grad()
    def _generated(self, inputs: dict[str, Tensor], settings: GenerationConfig, **options: Any) -> Any:
        """What transformers' `generate` gives."""
        own = self.model.generation_config
        # what a given configuration leaves open would be taken from the model's: so it is put in the place of that one
        self.model.generation_config = settings
        try:
            # not the class's own, which Janus has for the sake of the images that it makes
            return GenerationMixin.generate(self.model, **inputs, **options)
        finally:
            self.model.generation_config = own
