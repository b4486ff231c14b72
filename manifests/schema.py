"""What to look at: one sample = one image + one text = one forward pass of the LMM (`manifest.py` files them)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import PureWindowsPath
from typing import Final, Literal

from manifests.errors import DatasetError
from manifests.files import is_unicode, shown, text_fault
from manifests.masks import Rle, area
from manifests.pictures import size_fault

DEFAULT_PROMPT: Final = "Please give me a description of the image."
Task = Literal["referring", "narrative", "reasoning", "conversation"]
"""referring: expressions, each the name of an object.  narrative: a caption in which some phrases name objects.
reasoning: a question about one object; the LMM's own answer is grounded as a whole (ReasonSeg).
conversation: a prompt for a caption, and the caption that is right, its phrases grounded; the LMM's own caption is
searched for phrases (GCG). Without a reply of the LMM (to train on) it is a narrative."""
CAPTIONS: Final = ("narrative", "conversation")
"""Tasks whose texts have words that name an object and words that do not: what a keyword selector learns from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A run of the answer's text, tokenised alone. `object`: index into the sample's objects, None if it names none."""

    text: str
    object: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One thing to ground.

    object_id: the same in every sample that shows this object with another text.  mask: RLE at the image's own size.
    plural: several instances under one phrase.  category: "" where the data has none.  phrase: the words that name it.
    ignore: pixels that count neither for nor against a prediction (ReasonSeg's "ignore"), RLE of the same size.
    """

    object_id: str
    mask: Rle
    is_thing: bool
    plural: bool
    category: str
    phrase: str
    ignore: Rle | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the LMM itself answered to the prompt: token ids, never to be tokenised again.

    ids: without the token that ends the answer.  words: for each id the running number of the whitespace-separated word
    of `text` that it is part of, every number from 0 on at least once.  finished: False where it was cut off.
    """

    ids: tuple[int, ...]
    words: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and one teacher-forced answer: the concatenation of `pieces`, or the LMM's own `reply`.

    image_path: relative to the data root, "/" between parts; DatasetError where it would leave the root.
    height, width: pixels of the image file, the frame of all masks.  prompt: the question asked before the answer.
    group: what results are also told apart by ("short", "long" questions of ReasonSeg), "" for nothing.
    reply: the LMM's own answer, which is then what is grounded; `pieces` are the truth that it is compared with.
    error: what the reader found wrong with this record; no absolute paths, a manifest is the same on every machine. Its
    objects are there all the same, without pixels where a mask can not be had: the metrics count them as misses.
    """

    sample_id: str
    dataset: str
    split: str
    task: Task
    image_id: str
    image_path: str
    height: int
    width: int
    prompt: str = DEFAULT_PROMPT
    pieces: tuple[Piece, ...]
    objects: tuple[Object, ...]
    group: str = ""
    reply: Reply | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if not all(map(is_unicode, self._texts())):
            raise DatasetError(
                f"sample {ascii(self.sample_id)[:100]}: a text holds half a character (a surrogate): save it as UTF-8"
            )
        if leaves_root(self.image_path):
            raise DatasetError(
                f"sample {self.sample_id[:100]}: image path {shown(self.image_path)} leaves the data root; "
                "give it relative to the root, without '..'"
            )

    def _texts(self) -> Iterator[str]:
        """All text that was read from a file."""
        own = (self.sample_id, self.dataset, self.split, self.image_id, self.image_path, self.prompt, self.group)
        of_objects = ((item.object_id, item.category, item.phrase) for item in self.objects)
        return chain(own, (self.error or "",), (piece.text for piece in self.pieces), *of_objects)

    @property
    def slots(self) -> int:
        """Attention maps that extraction keeps: one per object, or per word of a reply that is searched for phrases."""
        if self.task == "conversation" and self.reply is not None:
            return len(set(self.reply.words))
        return len(self.objects)


def leaves_root(path: str) -> bool:
    """Is this anything but a plain relative path ("a/b.jpg") that stays in its folder? Looks at the text only."""
    windows = PureWindowsPath(path)  # also splits at "/"; knows drives, which pathlib on Linux takes for names
    if any(len(part.encode(errors="surrogatepass")) > 255 for part in windows.parts):  # no file system has such a name
        return True
    return not path.strip() or "\0" in path or bool(windows.anchor) or ".." in windows.parts or path.startswith("/")


def problem(sample: Sample) -> str | None:
    """Why a sample can not be used, in words for the user: what, where and the cure; None if it can."""
    if sample.error is not None:
        return sample.error
    if fault := size_fault(sample.height, sample.width):
        return f"the image of sample {sample.sample_id} {fault}: use a smaller one"
    for text in (sample.prompt, *(piece.text for piece in sample.pieces)):
        if fault := text_fault(text):
            return f"a text of sample {sample.sample_id} {fault}: shorten it"
    if sample.task == "reasoning" and sample.reply is None:
        return f"sample {sample.sample_id} is a question without an answer to ground: extract with --answer"
    if sample.reply is not None and not sample.reply.ids:
        return f"sample {sample.sample_id}: the LMM gave no answer to {sample.prompt!r}: nothing can be grounded"
    spoken: set[int] = set(range(len(sample.objects)) if sample.task == "reasoning" else ())
    for piece in sample.pieces:
        if piece.object is None:
            continue
        if not 0 <= piece.object < len(sample.objects):
            return (
                f"sample {sample.sample_id}: the text {piece.text!r} belongs to object {piece.object}, there are "
                f"{len(sample.objects)}, counted from 0: correct the index"
            )
        if not piece.text.strip():
            return f"object {sample.objects[piece.object].object_id} has an empty text: give it words, or remove it"
        spoken.add(piece.object)
    if not sample.objects:
        return f"sample {sample.sample_id} has no object to ground: give a piece of its text a mask, or remove it"
    for index, item in enumerate(sample.objects):
        if index not in spoken:
            return f"no text speaks of object {item.object_id}: give it a piece of the text, or remove it"
        if list(item.mask["size"]) != [sample.height, sample.width]:
            return (
                f"the mask of object {item.object_id} is {'x'.join(map(str, item.mask['size']))} pixels (height x "
                f"width), its image {sample.height}x{sample.width}: give the mask at the image's size"
            )
        try:
            pixels = area(item.mask)
        except ValueError as error:
            return f"the mask of object {item.object_id} can not be decoded ({error}): correct its annotation"
        if pixels == 0 and sample.task != "reasoning":  # a question may be about nothing that is there
            return f"the mask of object {item.object_id} has no pixels: correct its annotation, or remove it"
    return None
