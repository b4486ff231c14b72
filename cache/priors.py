"""The reader of a priors cache and of the image cache it names: one sample at a time.

    priors = Priors.open("cache/refcoco")
    item = priors.read(0)               # None if the sample failed: priors.failures[0] says why
    embedding = priors.embedding(0)     # SAM's, float16 [Ce, e, e]

Letters: n objects, T object tokens, A answer tokens, C maps of h×w, M layers of width d, Ce×e×e SAM's embedding. Where
a sample's reply is searched for phrases, its "objects" are the reply's words (`Sample.slots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from cache import log8
from cache.identity import differing
from cache.layout import Kind
from cache.log8 import CODES, PEAK
from cache.memory import Memory
from cache.places import Where
from cache.plan import BoxTuple, ImageRows, PlanRows
from cache.scaling import restore_maps, restore_states
from cache.source import Source, images_of, open_source
from manifests.errors import CacheError, IdentityMismatch
from manifests.manifest import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePriors:
    """What the LMM said about one sample. The arrays are shared with the reader's memory and therefore read-only."""

    attention: np.ndarray
    """float16 [n, C, h, w], each map of mean 1."""
    attention_mass: np.ndarray
    """float32 [n, C]: attention · mass / (h·w) is what the LMM's softmax gave."""
    scaled_hidden: np.ndarray
    """float16 [T, M, d]: the tokens of all objects, one object after the other, each state of RMS 1."""
    hidden_scale: np.ndarray
    """float32 [T, M]: the states' own RMS."""
    hidden_object: np.ndarray
    """int64 [T]: the object that a token belongs to."""
    answer_hidden: np.ndarray
    """float32 [A, d]: last layer, after the final norm."""
    answer_ids: np.ndarray
    """int32 [A]."""
    answer_object: np.ndarray
    """int32 [A]: -1 for no object."""
    answer_word: np.ndarray
    """int32 [A]: running number of the whitespace-separated word."""
    box: BoxTuple
    """(top, left, height, width, size): the image in the LMM's square input, pixels of that square."""

    @property
    def hidden(self) -> np.ndarray:
        """float32 [T, M, d]: the states as the LMM gave them; computed anew every time."""
        return restore_states(self.scaled_hidden, self.hidden_scale)


class Priors:
    """Random access to the samples of a cache; can be pickled, every process reads for itself."""

    def __init__(self, store: Source, images: Source | None, memory_bytes: int) -> None:
        self.store, self.images = store, images
        self.rows = PlanRows(store.file("rows.parquet"))
        self.image_rows = ImageRows(images.file("rows.parquet")) if images else None
        self.channels, *grid = (arrays := store.meta.arrays)[CODES if CODES in arrays else "attention"].item_shape
        self.grid: tuple[int, int] = (grid[0], grid[1])
        self.layers, self.width = arrays["hidden"].item_shape
        # first what is there, then what failed: of a unit that is committed between the two all failures are known
        self._ready = None if store.complete else set(store.committed_units())
        self._ready_images = None if images is None or images.complete else set(images.committed_units())
        self.failures: dict[int, str] = self._failures()
        self._memory = Memory(memory_bytes)

    @classmethod
    def open(
        cls,
        cache_dir: Where,
        *,
        images_dir: Where | None = None,
        allow_partial: bool = False,
        need_images: bool = True,
        memory_bytes: int = 2 << 30,
    ) -> Priors:
        """Open a priors cache and the image cache it names.

        images_dir: where the image cache is now, if it was moved; else `soft["images"]`, relative to the cache.
        need_images: False: open the priors without an image cache if there is none.
        allow_partial: accept caches that are not complete; ask `available` before reading.
        memory_bytes: budget for samples and embeddings kept in RAM; 0 reads from disk every time.
        Raises CacheError for a cache that is missing, damaged or not complete, and IdentityMismatch if the image cache
        is not the one that the priors were planned with.
        """
        store = _opened(cache_dir, "priors", allow_partial)
        if (expected := store.meta.identity.get("images")) is None:
            return cls(store, None, memory_bytes)
        try:
            where = images_of(store, images_dir)
        except CacheError:
            if need_images:
                raise
            return cls(store, None, memory_bytes)
        images = _opened(where, "images", allow_partial)
        if differences := differing(expected, images.reference(), "images"):
            raise IdentityMismatch(
                f"{images.name} is not the image cache that {store.name} was made with: "
                f"{'; '.join(f'{each.field}: expected {each.stored}, found {each.given}' for each in differences)}. "
                "Give the right one, or extract the images again"
            )
        return cls(store, images, memory_bytes)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def samples(self) -> Samples:
        """The manifest, in order: sample i is what `read(i)` is about. Opened on first use, read row by row."""
        samples = Samples(self.store.file("manifest.parquet"))
        if len(samples) != len(self.rows):
            raise CacheError(
                f"{self.store.name}: {len(samples)} samples in the manifest, {len(self.rows)} in rows.parquet"
            )
        return samples

    @property
    def identity(self) -> dict[str, Any]:
        return self.store.meta.identity

    def objects(self) -> int:
        """Slots of the samples that did not fail: objects, and words of replies, each as many bytes as an object."""
        counts = self.rows.numbers("objects")
        return int(counts.sum()) - sum(int(counts[index]) for index in self.failures)

    def counted(self) -> str:
        """What `objects` are, in words for the user."""
        return "objects and words of replies" if self.samples.searched().any() else "objects"

    def available(self, index: int) -> bool:
        """Can sample `index` be read (or is it known to have failed)? Always true for a complete cache."""
        unit, image = self.rows.number("unit", index), self.rows.number("image", index)
        if index in self.failures:
            return True
        seen = self._ready is None or unit in self._ready
        if self._ready_images is None or self.image_rows is None or image < 0:
            return seen
        return seen and self.image_rows.number("unit", image) in self._ready_images

    def read(self, index: int) -> SamplePriors | None:
        """The priors of sample `index`, None if it failed. CacheError if its unit is not extracted yet or damaged."""
        if index in self.failures:
            return None
        if (known := self._memory.get(("sample", index))) is None:
            known = self._read(self._checked(index))
            arrays = [value for field in fields(known) if isinstance(value := getattr(known, field.name), np.ndarray)]
            for array in arrays:
                array.flags.writeable = False
            self._memory.put(("sample", index), known, sum(array.nbytes for array in arrays))
        return known

    def embedding(self, index: int) -> np.ndarray:
        """SAM's embedding of the sample's image: float16 [Ce, e, e], read-only. CacheError if there is none."""
        image = self._image(index)
        if (known := self._memory.get(("image", image))) is None:
            assert self.images is not None and self.image_rows is not None
            slot = self.image_rows.number("slot", image)
            known = self.images.read("embedding", slot, slot + 1)[0]
            known.flags.writeable = False
            self._memory.put(("image", image), known, known.nbytes)
        return known

    def advise(self, indices: Iterable[int]) -> None:
        """These samples will be read soon: the disk may begin with what is not in memory."""
        for index in indices:
            if index in self.failures:
                continue
            row, image = self.rows[index], self.rows.number("image", index)
            if self._memory.get(("sample", index)) is None:
                self.store.advise("attention", row.slot, row.slot + row.objects)
                self.store.advise("hidden", row.token_slot, row.token_slot + len(row.token_positions))
                self.store.advise("answer_hidden", row.answer_slot, row.answer_slot + len(row.answer_ids))
            if self.images is not None and self.image_rows is not None and self._memory.get(("image", image)) is None:
                slot = self.image_rows.number("slot", image)
                self.images.advise("embedding", slot, slot + 1)

    def image_box(self, index: int) -> BoxTuple:
        """(top, left, height, width, size): the sample's image in SAM's square input, pixels of that square."""
        image = self._image(index)
        assert self.image_rows is not None
        return self.image_rows[image].box

    def _read(self, index: int) -> SamplePriors:
        row, read = self.rows[index], self.store.read
        slots = slice(row.slot, row.slot + row.objects)
        tokens = slice(row.token_slot, row.token_slot + len(row.token_positions))
        answers = slice(row.answer_slot, row.answer_slot + len(row.answer_ids))
        return SamplePriors(
            attention=read_maps(self.store, slots.start, slots.stop),
            attention_mass=read("attention_mass", slots.start, slots.stop),
            scaled_hidden=read("hidden", tokens.start, tokens.stop),
            hidden_scale=read("hidden_scale", tokens.start, tokens.stop),
            hidden_object=np.repeat(np.arange(row.objects, dtype=np.int64), row.token_counts),
            answer_hidden=restore_states(
                read("answer_hidden", answers.start, answers.stop), read("answer_scale", answers.start, answers.stop)
            ),
            answer_ids=np.array(row.answer_ids, np.int32),
            answer_object=np.array(row.answer_object, np.int32),
            answer_word=np.array(row.answer_word, np.int32),
            box=row.box,
        )

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.store.name} has {len(self)} samples, there is no sample {index}")
        return index

    def _image(self, index: int) -> int:
        image = self.rows.number("image", self._checked(index))
        if index in self.failures:
            raise CacheError(f"{self.store.name}: sample {index} failed: {self.failures[index]}")
        if self.image_rows is None or image < 0:
            raise CacheError(f"{self.store.name}: sample {index} has no image embedding; extract with the image cache")
        if not image < len(self.image_rows):
            raise CacheError(f"{self.store.name}: sample {index} names image {image} of {len(self.image_rows)}")
        return image

    def _failures(self) -> dict[int, str]:
        """Reasons by sample: of the planner, of the LMM, and of the image encoder for every sample of that image."""
        failures = {int(entry["sample"]): str(entry["reason"]) for entry in self.store.failures()}
        if not self.store.complete:  # else they are among those above
            failures |= {int(str(entry["sample"])): str(entry["reason"]) for entry in self.rows.planned_failures()}
        images = {entry["image"]: entry["reason"] for entry in self.images.failures()} if self.images else {}
        if images:
            image_of = self.rows.numbers("image")
            for index in np.flatnonzero(np.isin(image_of, list(images))).tolist():
                failures.setdefault(index, f"its image has no embedding: {images[int(image_of[index])]}")
        return failures


def merged(item: SamplePriors, groups: Sequence[Sequence[int]], how: str) -> SamplePriors:
    """The priors of objects that are made of several: of the phrases of a text whose words were cached one by one.

    groups: of each new object the old ones, in reading order.  how: "mean" (over the tokens of all of them) or "max",
    the merge that the cache was extracted with. What comes out is what extraction would have kept of these objects,
    but for the rounding of the maps to float16.
    """
    tokens = np.bincount(item.hidden_object, minlength=len(item.attention))
    new_of_old = np.full(len(item.attention) + 1, -1, np.int32)  # the last one: of what was none
    maps = np.zeros((len(groups), *item.attention.shape[1:]), np.float64)
    chosen = [np.zeros(0, np.int64)]
    for number, group in enumerate(groups):
        old = list(group)
        new_of_old[old] = number
        each = restore_maps(item.attention[old], item.attention_mass[old])
        maps[number] = each.max(0) if how == "max" else np.average(each, axis=0, weights=tokens[old])
        chosen += [np.flatnonzero(item.hidden_object == one) for one in old]
    mean, rows = maps.mean((-2, -1), keepdims=True), np.concatenate(chosen)
    return replace(
        item,
        attention=np.divide(maps, mean, out=np.zeros_like(maps), where=mean > 0).astype(np.float16),
        attention_mass=maps.sum((-2, -1)).astype(np.float32),
        scaled_hidden=item.scaled_hidden[rows],
        hidden_scale=item.hidden_scale[rows],
        hidden_object=new_of_old[item.hidden_object[rows]].astype(np.int64),
        answer_object=new_of_old[item.answer_object],
    )


def read_maps(source: Source, start: int, stop: int) -> np.ndarray:
    """Attention of slots [start, stop), however it is stored: float16 [stop - start, C, h, w], each map of mean 1."""
    if CODES in source.meta.arrays:
        return log8.decode(source.read(CODES, start, stop), source.read(PEAK, start, stop))
    return source.read("attention", start, stop)


def _opened(where: Where, kind: Kind, allow_partial: bool) -> Source:
    store = open_source(where, kind)
    if store.meta.kind != kind:
        raise CacheError(f"{store.name} is a cache of {store.meta.kind}, a cache of {kind} is needed")
    if not store.complete and not allow_partial:
        raise CacheError(
            f"{store.name} is not complete ({len(store.missing_units())} of {store.meta.units} units are missing); "
            "run extract again to resume"
        )
    return store
