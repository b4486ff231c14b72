"""Texts and images as an LMM takes them, without its weights: prompts with image tokens, answers, pixels."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from manifests.errors import DatasetError, ModelError, PipelineError
from manifests.files import shown
from manifests.schema import Reply, Sample, Task
from stages.extract.attention import WordRows
from stages.extract.checkpoint import first_line, local_folder, unloadable
from stages.extract.grids import Shown, View, grid_of, image_token_id
from stages.extract.images import pad_to_square
from stages.extract.presets import LMMPreset
from stages.extract.turns import between, require_plain, special_ids

TYPES: Final[tuple[str, ...]] = ("token_type_ids", "mm_token_type_ids")
TEXT: Final = (*TYPES, "input_ids", "attention_mask", "labels")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The conversation up to the answer, with an image of one size in it.

    ids: token ids, the image's token once per column.  views: the whole image on its columns (positions in `ids`), one
    view for each of the preset's: coarse, then fine.  types: what the family calls token types, by input name, one
    entry per id.
    """

    ids: list[int]
    views: tuple[View, ...]
    types: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A sample's teacher-forced answer in tokens. All lists have one entry per token.

    ids: token ids.  objects: which object of the sample (which of its `slots`) the token belongs to, -1 for none.
    words: running number of the whitespace-separated word that the token is part of.
    """

    ids: list[int]
    objects: list[int]
    words: list[int]

    def tokens_of(self, count: int) -> list[list[int]]:
        """For each of the sample's `count` slots the positions of its tokens in the answer."""
        found: list[list[int]] = [[] for _ in range(count)]
        for position, owner in enumerate(self.objects):
            if owner >= 0:
                found[owner].append(position)
        return found


def answer_of_reply(task: Task, reply: Reply) -> Answer:
    """An answer of the LMM itself: about the one object as a whole, or each word a slot of its own."""
    words = list(reply.words)
    return Answer(ids=list(reply.ids), objects=[0] * len(words) if task == "reasoning" else words, words=words)


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

    @property
    def rows(self) -> WordRows:
        """Where the words and the image are in the whole input."""
        start = len(self.prompt.ids)
        return WordRows(
            objects=[[start + p for p in positions] for positions in self.object_tokens],
            columns=[column for view in self.prompt.views for column in view.columns],
            answer=range(start, self.length),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question about an image. image: uint8 [height, width, 3] of `FrozenLMM.prepare`."""

    image: np.ndarray
    prompt: Prompt


class LMMProcessor:
    """An LMM's own tokenizer and image processor; LLaVA's images are prepared as F-LMM prepares them.

    Raises ModelError where its files are not on this machine (or broken) and can not be downloaded.
    """

    def __init__(self, preset: LMMPreset, *, download: bool = True):
        from transformers import AutoConfig, AutoProcessor, AutoTokenizer

        self.preset = preset
        trusted = preset.trust_remote_code
        folder = local_folder(preset.source, download=download, code=trusted)

        def load(auto: Any) -> Any:
            return auto.from_pretrained(folder, trust_remote_code=trusted)

        try:
            self.config: Any = load(AutoConfig)
            self.processor: Any = None if preset.square else load(AutoProcessor)
            self.tokenizer: Any = self.processor.tokenizer if self.processor else load(AutoTokenizer)
        except Exception as error:  # a missing or damaged file raises ValueError, KeyError, OSError, bare Exception, …
            raise unloadable(folder, "tokenizer or processor", error, trusted) from error
        self.grid = grid_of(self.config)
        self.image_id = image_token_id(self.config)
        self._special = special_ids(self.tokenizer, self.image_id)
        self.context: int | None = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
        """Tokens that prompt and answer may have together, where the checkpoint says so."""
        self._cached = lru_cache(maxsize=4096)(self._prompt)

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        """The conversation up to the answer with an image of `size` (width, height).

        Raises DatasetError for a prompt that is more than text to this LMM, such as one with a second image's token;
        ValueError where its processor refuses the image.
        """
        return self._cached(prompt, size)

    def first_turn(self, question: str, size: tuple[int, int]) -> Prompt:
        """`prompt` of a question that anyone may have written.

        Raises DatasetError for one that is no plain text, ModelError where the LMM takes no image of that `size`.
        """
        try:
            return self.prompt(question, size)
        except PipelineError:
            raise
        except ValueError as error:
            reason = f"the LMM takes no image of {size[0]}x{size[1]} pixels ({first_line(error)}): choose another"
            raise ModelError(reason) from error

    def next_turn(self, prompt: Prompt, reply_ids: Sequence[int], question: str) -> Prompt:
        """The conversation so far, its answer exactly as it was generated, and the next question up to its answer.

        reply_ids: without the token that ended the answer; what ends a turn is written as the LMM's template has it.
        Raises DatasetError as `first_turn`, ModelError for an LMM whose conversations have one question.
        """
        require_plain(question, self.tokenizer, self.processor, self.image_id)
        said = [*reply_ids, *between(question, self.preset, self.tokenizer, self.processor)]
        # all of it is text by now, which is 0 in every family, PaliGemma's prefix included
        types = {name: values + [0] * len(said) for name, values in prompt.types.items()}
        return replace(prompt, ids=prompt.ids + said, types=types)

    def _prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        require_plain(prompt, self.tokenizer, self.processor, self.image_id)
        inputs: dict[str, Any] = {}
        if self.preset.square:
            ids = self.tokenizer.encode(self._conversation(prompt))
            if ids.count(self.image_id) != 1:
                raise ModelError(f"the tokenizer of {self.preset.source} has no <image> token")
            at = ids.index(self.image_id)
            ids = [*ids[:at], *[self.image_id] * self.preset.square.cells**2, *ids[at + 1 :]]
        else:
            inputs = self._processed(prompt, [Image.new("RGB", size)])
            ids = inputs["input_ids"][0].tolist()
        columns = [position for position, token in enumerate(ids) if token == self.image_id]
        count = self.preset.views
        tiles = self.grid.tiles_of(getattr(self.processor, "image_processor", None), size, count)
        found = self.grid.views(Shown(columns=columns, size=size, inputs=inputs, config=self.config, tiles=tiles))
        types = {name: inputs[name][0].tolist() for name in TYPES if name in inputs}
        # an image that is too small for tiles has no fine view: its coarse one stands for both
        return Prompt(ids=ids, views=(found[0],) if count == 1 else (found[0], found[-1]), types=types)

    def _processed(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Any]:
        """The processor's outputs for a batch of the same prompt."""
        text = self._conversation(prompt)
        bos = self.tokenizer.bos_token
        return dict(
            self.processor(
                text=[text] * len(images),
                images=[[image] for image in images],
                padding=True,
                return_tensors="pt",
                add_special_tokens=not (bos and text.startswith(bos)),  # chat templates write it themselves
                **self.grid.processor_options(self.preset.views),
            )
        )

    def _conversation(self, prompt: str) -> str:
        if self.preset.template:
            # what stands for the image in a text; Gemma 3's begins it
            name = "boi_token" if self.config.model_type == "gemma3" else "image_token"
            return self.preset.template.format(prompt=prompt, image=getattr(self.processor, name, None))
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, 3]: the image as `pixels` takes it; F-LMM's padded square for LLaVA."""
        if square := self.preset.square:
            return pad_to_square(image, square.image_size, square.mean)[0]
        return np.asarray(image.convert("RGB"))

    def pixels(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """What the model takes beside its ids, for a batch of prepared images (pixel_values, image_grid_thw, …)."""
        if square := self.preset.square:
            values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            mean, std = (torch.tensor(x, dtype=torch.float32).view(1, 3, 1, 1) for x in (square.mean, square.std))
            return {"pixel_values": (values - mean) / std}
        inputs = self._processed("", [Image.fromarray(image) for image in images])
        return {name: value for name, value in inputs.items() if name not in TEXT}

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
                types[name][b, start:] = self.grid.answer_type
            rows.append(sample.rows)
        pixels = self.pixels([s.image for s in batch])
        return {"input_ids": ids, "attention_mask": mask, **types, **pixels}, rows

    def collate_prompts(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """Model inputs of questions without answers, left-padded: what is said comes right after each."""
        length = max(len(each.prompt.ids) for each in asked)
        ids, mask = (torch.zeros(len(asked), length, dtype=torch.long) for _ in range(2))
        types = {name: torch.zeros(len(asked), length, dtype=torch.long) for name in asked[0].prompt.types}
        for b, each in enumerate(asked):
            start = length - len(each.prompt.ids)
            ids[b, start:] = torch.tensor(each.prompt.ids)
            mask[b, start:] = 1
            for name, values in each.prompt.types.items():
                types[name][b, start:] = torch.tensor(values)
        return {"input_ids": ids, "attention_mask": mask, **types, **self.pixels([each.image for each in asked])}

    def room(self, prompt: Prompt, most: int) -> int:
        """Tokens, at most `most`, that an answer may have until the LMM's context is full."""
        return most if self.context is None else min(most, self.context - len(prompt.ids))

    def answer(self, sample: Sample) -> Answer:
        """Each piece is tokenised alone, without special tokens, and the ids are concatenated (F-LMM).

        So which tokens belong to which object is exact by construction. What the LMM said itself is its own ids.
        Raises DatasetError for a text with a token that is no text, such as the image's.
        """
        if sample.reply is not None:
            return answer_of_reply(sample.task, sample.reply)
        ids: list[int] = []
        objects: list[int] = []
        words: list[int] = []
        spoken = 0
        for piece in sample.pieces:
            if not piece.text.strip():
                continue  # no word, no token
            encoded = self.tokenizer(piece.text, add_special_tokens=False, return_offsets_mapping=True)
            if found := self._special.intersection(encoded["input_ids"]):
                token = self.tokenizer.convert_ids_to_tokens(min(found))
                raise DatasetError(
                    f"the text {shown(piece.text)} holds {token!r}, which is no text to this LMM: leave it out"
                )
            starts = [m.start() for m in re.finditer(r"\S+", piece.text)]
            for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                # the token's last character decides; a space belongs to the word that follows it
                last = end if piece.text[max(end - 1, 0)].isspace() else end - 1
                ids.append(token)
                objects.append(-1 if piece.object is None else piece.object)
                words.append(spoken + max(0, bisect_right(starts, last) - 1))
            spoken += len(starts)
        return Answer(ids=ids, objects=objects, words=words)
