"""Priors of one image, made now and kept in memory: what a cache would hold of these texts, for the same heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from cache import log8
from cache.checks import all_finite
from cache.priors import SamplePriors
from cache.scaling import restore_states
from manifests.errors import ModelError
from manifests.schema import Sample
from stages.extract.images import Box
from stages.extract.lmm import FrozenLMM
from stages.extract.processor import Answer, LMMInput
from stages.extract.stored import stored_box, stored_fields

OF_OBJECTS: Final = ("attention", "attention_mass")


class LivePriors:
    """A `stages.train_head.data.PriorsLike`: texts about one image, read from memory.

    identity: of what the head was trained on, which these are like.  embedding, sam_box: of the image; None where the
    head needs none.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        items: Sequence[SamplePriors],
        identity: dict[str, Any],
        embedding: np.ndarray | None,
        sam_box: Box | None,
    ):
        self.failures: dict[int, str] = {}
        self.samples: Any = samples
        self.items, self.identity = items, identity
        self._embedding, self._sam_box = embedding, sam_box

    def read(self, index: int) -> SamplePriors:
        return self.items[index]

    def embedding(self, index: int) -> np.ndarray:
        assert self._embedding is not None, "the head needs SAM's embedding"
        return self._embedding

    def image_box(self, index: int) -> tuple[int, int, int, int, int]:
        assert self._sam_box is not None, "the head needs SAM's embedding"
        return self._sam_box.as_tuple()

    def advise(self, indices: Iterable[int]) -> None:
        """Nothing has to be fetched."""


def capture_one(
    lmm: FrozenLMM, asked: LMMInput, answer: Answer, past: Any, derived: Sequence[Mapping[str, Any]]
) -> SamplePriors:
    """The priors of one text, as extraction keeps them, after what `derived` says was done to the head's cache.

    answer: the text in tokens; its `objects` are the slots of `asked.object_tokens`.  past: of `FrozenLMM.speak`.
    Where a GPU has no room for the maps of all slots at once, half of them are captured at a time.
    ModelError where the LMM gives inf or nan.
    """
    fields = _fields(lmm, asked, past)
    if bad := [name for name, values in fields.items() if not all_finite(values)]:
        raise ModelError(
            f"inf or nan in the LMM's {', '.join(bad)}: its weights do not run on this device in this dtype"
        )
    for step in derived:
        fields = _derived(fields, step)
    counts = [len(positions) for positions in asked.object_tokens]
    return SamplePriors(
        attention=fields["attention"],
        attention_mass=fields["attention_mass"],
        scaled_hidden=fields["hidden"],
        hidden_scale=fields["hidden_scale"],
        hidden_object=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
        answer_hidden=restore_states(fields["answer_hidden"], fields["answer_scale"]),
        answer_ids=np.array(answer.ids, np.int32),
        answer_object=np.array(answer.objects, np.int32),
        answer_word=np.array(answer.words, np.int32),
        box=stored_box(asked.prompt.views[-1], lmm.preset.grid),
    )


def _fields(lmm: FrozenLMM, asked: LMMInput, past: Any) -> dict[str, np.ndarray]:
    """The cache's arrays of one text; see `stored_fields`."""
    try:
        found = stored_fields(lmm.run([asked], past=past), asked.views, lmm.preset.grid)
        return {name: values.cpu().numpy() for name, values in found.items()}
    except torch.OutOfMemoryError:
        if len(asked.object_tokens) < 2:
            raise
    torch.cuda.empty_cache()
    half = len(asked.object_tokens) // 2
    parts = [
        _fields(
            lmm,
            LMMInput(image=asked.image, prompt=asked.prompt, answer_ids=asked.answer_ids, object_tokens=tokens),
            past,
        )
        for tokens in (asked.object_tokens[:half], asked.object_tokens[half:])
    ]
    of_answer = ("answer_hidden", "answer_scale")  # the same in both
    return {
        name: values if name in of_answer else np.concatenate([values, parts[1][name]])
        for name, values in parts[0].items()
    }


def _derived(fields: dict[str, np.ndarray], step: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What `cache.derive` did to the priors that the head was trained on, done to these."""
    if step["action"] == "prune":
        return fields | {name: fields[name][:, step["channels"]] for name in OF_OBJECTS}
    if step["action"] == "encode":
        return fields | (
            {"attention": log8.decode(*log8.encode(fields["attention"]))} if step["encoding"] == "log8" else {}
        )
    raise ModelError(f"the head was trained on a cache that was made by {step['action']!r}, which is not known here")
