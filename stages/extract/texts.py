"""The samples' texts in tokens, and what planning keeps of them: numbers in columns, no Python object a sample."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from cache.plan import ROW_SCHEMA, columns_table, list_column
from manifests.errors import DatasetError
from manifests.schema import Sample, problem
from stages.extract.grids import View
from stages.extract.grids.view import square_view
from stages.extract.images import centred_box
from stages.extract.presets import LMMPreset
from stages.extract.processor import Answer, Prompt, answer_of_reply
from stages.extract.stored import stored_box


class TextToIds(Protocol):
    """What planning needs of an LMM (`stages.extract.processor.LMMProcessor`, or `WordCount` for estimates)."""

    context: int | None

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt: ...

    def answer(self, sample: Sample) -> Answer: ...


class WordCount:
    """Estimates for a dry run where the LMM's processor is not on this machine: 1.4 tokens a word."""

    context: int | None = None

    def __init__(self, preset: LMMPreset):
        self.preset = preset

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        height, width = self.preset.grid
        view = View(height=height, width=width, columns=range(height * width))
        if self.preset.square:
            view = square_view(view.columns, centred_box(*size, self.preset.square.image_size))
        ids = [0] * (height * width + round(1.4 * len(prompt.split())) + 8)
        return Prompt(ids=ids, views=(view,) * self.preset.views, types={})

    def answer(self, sample: Sample) -> Answer:
        if sample.reply is not None:
            return answer_of_reply(sample.task, sample.reply)
        ids: list[int] = []
        objects: list[int] = []
        for piece in sample.pieces:
            count = max(1, round(1.4 * len(piece.text.split())))
            ids += [0] * count
            objects += [-1 if piece.object is None else piece.object] * count
        return Answer(ids=ids, objects=objects, words=list(range(len(ids))))


class Texts:
    """The columns of rows.parquet that follow from the samples alone, filled sample by sample with `add`.

    A sample that can not be used has an error, and zeros and empty lists.
    """

    def __init__(self, text: TextToIds, grid: tuple[int, int], row_of: Mapping[str, int], missing: Mapping[str, str]):
        """grid: of the stored maps.  row_of, missing: of each image path its row, or why there is none."""
        self.text, self.grid, self.row_of, self.missing = text, grid, row_of, missing
        self.errors: list[str | None] = []
        self.lengths = array("i")
        """Tokens of the whole input, 0 where it can not be used."""
        self._counts = array("i")  # slots, object tokens, answer tokens; slots, …
        self._images, self._boxes = array("i"), array("i")
        self._token_counts, self._positions = array("i"), array("i")
        self._ids, self._words, self._objects = array("i"), array("i"), array("i")
        self._refused: dict[tuple[int, int], str] = {}

    def add(self, sample: Sample) -> None:
        """Tokenise the next sample."""
        found = self._tokenised(sample)
        if isinstance(found, str):
            self.errors.append(found)
            self.lengths.append(0)
            self._counts.extend((0, 0, 0))
            self._images.append(-1)
            self._boxes.extend((0, 0, 0, 0, 0))
            return
        answer, tokens, prompt = found
        positions = [position for group in tokens for position in group]
        self.errors.append(None)
        self.lengths.append(len(prompt.ids) + len(answer.ids))
        self._counts.extend((len(tokens), len(positions), len(answer.ids)))
        self._images.append(self.row_of[sample.image_path])
        self._boxes.extend(stored_box(prompt.views[-1], self.grid))
        self._token_counts.extend(map(len, tokens))
        self._positions.extend(positions)
        self._ids.extend(answer.ids)
        self._words.extend(answer.words)
        self._objects.extend(answer.objects)

    def counts(self) -> np.ndarray:
        """int64 [samples, 3]: objects, object tokens, answer tokens."""
        return np.array(self._counts, np.int64).reshape(-1, 3)

    def table(self, places: Mapping[str, np.ndarray]) -> pa.Table:
        """ROW_SCHEMA, a row per sample. places: int64 [samples] of each column that packing and batching decide."""
        objects, tokens, answers = self.counts().T
        columns = {
            "sample": np.arange(len(objects)),
            "objects": objects,
            "token_counts": list_column(objects, self._token_counts),
            "token_positions": list_column(tokens, self._positions),
            "answer_ids": list_column(answers, self._ids),
            "answer_word": list_column(answers, self._words),
            "answer_object": list_column(answers, self._objects),
            "image": self._images,
            "box": list_column(np.full(len(objects), 5), self._boxes),
            "error": self.errors,
        }
        return columns_table(columns | dict(places), ROW_SCHEMA)

    def _tokenised(self, sample: Sample) -> tuple[Answer, list[list[int]], Prompt] | str:
        """The answer, the positions of each slot's tokens in it, and the prompt; or why it can not be used."""
        if error := sample.error or self.missing.get(sample.image_path) or problem(sample):
            return error
        try:
            answer = self.text.answer(sample)
        except DatasetError as error:
            return str(error)
        tokens = answer.tokens_of(sample.slots)
        if sample.reply is None:
            silent = [item.phrase for item, positions in zip(sample.objects, tokens, strict=True) if not positions]
            if silent:
                return f"the phrase {silent[0]!r} has no tokens: give it words"
        size = (sample.width, sample.height)
        if size in self._refused:
            return self._refused[size]
        try:
            prompt = self.text.prompt(sample.prompt, size)
        except DatasetError as error:
            return str(error)
        except ValueError as refusal:
            self._refused[size] = takes_no_image(size, refusal)
            return self._refused[size]
        if fault := self._too_long(sample, len(prompt.ids) + len(answer.ids)):
            return fault
        return answer, tokens, prompt

    def _too_long(self, sample: Sample, length: int) -> str | None:
        """Why so many tokens, prompt and answer, are more than the LMM's context has."""
        reply, context = sample.reply, self.text.context
        if context is None:
            return None
        if reply is None:
            if length <= context:
                return None
            return (
                f"the image, the prompt and the text of sample {sample.sample_id} are {length} tokens, and the LMM's "
                f"context has {context}: shorten the text, or leave the sample out"
            )
        # one that was cut off would have had another token at least
        if length + (not reply.finished) <= context:
            return None
        return (
            f"the LMM's answer to {sample.prompt!r} does not end within its context of {context} tokens: give a "
            "smaller --max-answer-tokens, or leave the sample out"
        )


def takes_no_image(size: tuple[int, int], error: ValueError) -> str:
    """The reason of a sample whose image the LMM's processor refuses, such as for Qwen's limit on the aspect ratio."""
    return f"the LMM takes no image of {size[0]}x{size[1]} pixels ({error}): leave it out"
