"""The frozen LMM, SAM and a trained head, loaded once: answers about images, and masks of the words.

    grounder = Grounder.load(lmm="tiny", head="tiny")
    answer = grounder.answer("photo.jpg", "What is in the picture?")
    grounding = grounder.ground(answer)
    masks = {phrase.text: phrase.mask for phrase in grounding.phrases}      # bool [height, width]
    ring = grounder.segment("photo.jpg", "the red ring").phrases[0].mask

Everything between is what extraction and evaluation do with a sample, on one image: the same capture, the same scaling
to float16, the same choice of phrases, the same head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Final, NoReturn, Self

import numpy as np
from PIL import Image
from segment_anything.modeling import Sam

from cache.priors import SamplePriors, merged
from manifests.errors import DatasetError, ModelError, PipelineError
from manifests.files import text_fault
from manifests.masks import encode
from manifests.schema import DEFAULT_PROMPT, Piece, Reply, Sample, Task
from stages.evaluate.scoring import LAMBDA, phrases_above, run, score_words
from stages.extract.images import Box
from stages.extract.lmm import FrozenLMM
from stages.extract.processor import Asked, LMMInput, Prompt, answer_of_reply
from stages.extract.sam import encode_images, load_sam, preprocess_sam
from stages.ground.answer import Answer, SeenImage
from stages.ground.live import LivePriors, capture_one
from stages.ground.loading import checked, device_of, head_of
from stages.ground.photos import ImageLike, open_photo
from stages.ground.results import PARTS, Grounding, Phrase, split_words, trimmed
from stages.train_head.data import as_box, batch_of
from stages.train_head.heads.base import Head, object_masks
from stages.train_head.heads.checkpoint import learned_keywords

MAX_NEW_TOKENS: Final = 256
PHRASES: Final = 16  # given to the head at a time: SAM's decoder takes some 20 MB for each
ON_TEXT = Callable[[str], None]


class Grounder:
    """See the module. One call runs at a time; others, of other threads, wait."""

    def __init__(self, lmm: FrozenLMM, head: Head, sam: Sam | None, device: str, where: str = "the head"):
        """The parts, as `load` makes them: the head in eval mode on `device`, SAM there too or None.

        where: what messages call the head.
        """
        self.lmm, self.head, self.sam, self.device, self.where = lmm, head, sam, device, where
        self.identity: dict[str, Any] = head.priors or {}
        self._lock = RLock()

    @classmethod
    def load(
        cls,
        lmm: str = "tiny",
        head: str | Path = "tiny",
        *,
        device: str = "auto",
        gpus: int = 1,
        sam_checkpoint: Path | None = None,
        head_class: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """lmm: a preset, a folder, or a Hugging Face id.  head: a folder of `train-head`, hf://user/name, or "tiny",
        the embedded one.

        How the LMM is run (dtype, merge, views, maps) and which SAM goes with it is as the head was trained.
        device: cuda, cpu or auto.  gpus: the LMM is spread over so many.  sam_checkpoint: SAM's weights, if they are
        not where they belong.  head_class: module:Class of a head that is none of this program's; it is run.
        Raises ModelError for parts that can not be loaded, and IdentityMismatch, naming the fields, where the LMM or
        SAM is not the one that the head was trained with.
        """
        device = device_of(device, gpus)
        loaded = head_of(str(head), head_class)
        preset = checked(loaded, str(head), lmm, sam_checkpoint, trust_remote_code)
        identity = loaded.priors or {}
        sam = None
        if loaded.refined_size is not None:
            sam = load_sam(identity["images"]["identity"]["sam"]["name"], sam_checkpoint)
            sam = sam.requires_grad_(False).to(device)
        model = FrozenLMM(preset, device, identity["lmm"]["dtype"], identity["merge"], gpus=gpus)
        return cls(model, loaded.to(device).eval(), sam, device, str(head))

    def look(self, image: ImageLike | SeenImage) -> SeenImage:
        """The image as all questions about it share it; see `open_photo` for what it may be and what is refused."""
        if isinstance(image, SeenImage):
            return image
        opened = open_photo(image)
        return SeenImage(image=opened, prepared=self.lmm.prepare(opened))

    def answer(
        self,
        image: ImageLike | SeenImage,
        question: str,
        *,
        after: Answer | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        own_settings: bool = False,
        seed: int = 0,
        on_text: ON_TEXT | None = None,
    ) -> Answer:
        """What the LMM says about an image: always the likeliest token (greedy).

        after: the answer that this question follows, about the same image; the LMM sees all turns up to it, their
        tokens as they were said.  own_settings: as the checkpoint's generation_config says instead
        (temperature, top-p, …), sampled with `seed`.  on_text: is given the answer piece by piece.
        Raises DatasetError for an image or a question that the LMM does not take.
        """
        if max_new_tokens < 1:
            raise PipelineError(f"an answer of {max_new_tokens} tokens: it must have at least 1")
        if not question.strip():
            raise DatasetError("the question is empty: ask something")
        with self._lock:
            seen = self.look(image)
            if after is not None and seen is not after.seen:
                if seen.image.size != after.image.size or not np.array_equal(seen.prepared, after.seen.prepared):
                    raise DatasetError("the answer that this question follows is about another image: begin anew")
                seen = after.seen  # what was made of it is there
            prompt = self._prompt(seen, question, after)
            start = time.perf_counter()
            said = self.lmm.speak(
                Asked(image=seen.prepared, prompt=prompt),
                max_new_tokens,
                own_settings=own_settings,
                seed=seed,
                on_text=on_text,
            )
            self.lmm.synchronise()
        return Answer(
            seen=seen,
            question=question,
            text=said.reply.text,
            finished=said.reply.finished,
            turns=() if after is None else (*after.turns, (after.question, after.text)),
            seconds=time.perf_counter() - start,
            reply=said.reply,
            prompt=prompt,
            past=said.past,
        )

    def ground(self, answer: Answer, *, lam: float = LAMBDA) -> Grounding:
        """The words of an answer that name something, and their masks.

        lam: λ in (0, 1): words that the keyword selector gives more are grounded; neighbours are one phrase. Asked
        again with another λ, the LMM does not run again. Raises ModelError for a head without a trained selector.
        """
        if not 0 < lam < 1:
            raise PipelineError(f"λ {lam}: must lie between 0 and 1")
        self.require_selector()
        watch = _Watch(self.lmm.synchronise, answer=answer.seconds)
        sample = _sample("conversation", answer.image, answer.question, reply=answer.reply)
        words, found = np.zeros(0), []
        with self._lock:
            item = self._captured(answer, sample, watch) if answer.reply.ids else None
            if item is not None:
                priors = self._priors(answer.seen, [sample], [item], watch)
                with watch("selector"):
                    selected = score_words(self.head, priors, 0, item, self.device)
                if selected is None:
                    self._refuse()
                words = selected
                phrases, scores = phrases_above(words, lam)
                with watch("decode"):
                    for first in range(0, len(phrases), PHRASES):
                        some = slice(first, first + PHRASES)
                        groups = merged(item, phrases[some], self.identity["merge"])
                        found += self._phrases(priors, 0, groups, answer.text, phrases[some], scores[some])
        return Grounding(
            image=answer.image,
            question=answer.question,
            text=answer.text,
            finished=answer.finished,
            words=split_words(answer.text, words.tolist()),
            phrases=tuple(found),
            lam=lam,
            attention=np.zeros((0, self.head.shape.channels, 1, 1), np.float16) if item is None else item.attention,
            box=Box(top=0, left=0, height=1, width=1, size=1) if item is None else as_box(item.box),
            seconds=watch.seconds,
        )

    def segment(
        self, image: ImageLike | SeenImage, phrases: str | Sequence[str], *, prompt: str = DEFAULT_PROMPT
    ) -> Grounding:
        """Masks of given words, each alone: the LMM is made to say them, nothing is selected.

        prompt: what they are the answer to. Raises DatasetError for an empty phrase or one that is too long.
        """
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        given = [" ".join(phrase.split()) for phrase in given]
        if not given or not all(given):
            raise DatasetError("a phrase is empty: give the words that name something in the image")
        if fault := next(filter(None, map(text_fault, given)), None):
            raise DatasetError(f"a phrase {fault}: give a shorter one, in Unicode")
        watch, text = _Watch(self.lmm.synchronise), "\n".join(given)
        with self._lock:
            seen = self.look(image)
            samples = [_sample("referring", seen.image, prompt, phrase=phrase) for phrase in given]
            asked = self._prompt(seen, prompt, None)
            with watch("capture"):
                items = [self._given(seen, asked, sample) for sample in samples]
            priors = self._priors(seen, samples, items, watch)
            found: list[Phrase] = []
            with watch("decode"):
                for number, (item, phrase) in enumerate(zip(items, given, strict=True)):
                    first = len(" ".join(given[:number]).split())
                    words = [list(range(first, first + len(phrase.split())))]
                    found += self._phrases(priors, number, item, text, words, None)
        return Grounding(
            image=seen.image,
            question=None,
            text=text,
            finished=True,
            words=split_words(text),
            phrases=tuple(found),
            lam=None,
            attention=np.concatenate([item.attention for item in items]),
            box=as_box(items[0].box),
            seconds=watch.seconds,
        )

    def require_selector(self) -> None:
        """Raises ModelError where the head's keyword selector has learned nothing."""
        if not learned_keywords(self.head.record):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"the head in {self.where} has no trained keyword selector: give the words (--phrase, segment()), or a "
            "head that was trained on captions (PNG, GCG)"
        )

    def _prompt(self, seen: SeenImage, question: str, after: Answer | None) -> Prompt:
        processor = self.lmm.processor
        if after is not None:
            prompt = processor.next_turn(after.prompt, after.reply.ids, question)
        else:
            prompt = processor.first_turn(question, seen.image.size)
        if processor.room(prompt, 1) < 1:
            raise DatasetError(
                f"the image and the conversation are {len(prompt.ids)} tokens, and the LMM's context has "
                f"{processor.context}: ask a shorter question, or begin a new conversation"
            )
        return prompt

    def _captured(self, answer: Answer, sample: Sample, watch: _Watch) -> SamplePriors:
        if answer.priors is None:
            tokens = answer_of_reply("conversation", answer.reply)
            asked = LMMInput(
                image=answer.seen.prepared,
                prompt=answer.prompt,
                answer_ids=tokens.ids,
                object_tokens=tokens.tokens_of(sample.slots),
            )
            with watch("capture"):
                answer.priors = capture_one(self.lmm, asked, tokens, answer.past, self.identity.get("derived", ()))
            answer.past = None  # a GPU's memory
        return answer.priors

    def _given(self, seen: SeenImage, prompt: Prompt, sample: Sample) -> SamplePriors:
        tokens, context = self.lmm.processor.answer(sample), self.lmm.processor.context
        if context is not None and len(prompt.ids) + len(tokens.ids) > context:
            raise DatasetError(f"the phrase does not fit into the LMM's context of {context} tokens: shorten it")
        asked = LMMInput(image=seen.prepared, prompt=prompt, answer_ids=tokens.ids, object_tokens=tokens.tokens_of(1))
        return capture_one(self.lmm, asked, tokens, None, self.identity.get("derived", ()))

    def _priors(
        self, seen: SeenImage, samples: Sequence[Sample], items: Sequence[SamplePriors], watch: _Watch
    ) -> LivePriors:
        if self.sam is not None and seen.embedding is None:
            with watch("sam"):
                pixels, seen.sam_box = preprocess_sam(seen.image, self.sam.image_encoder.img_size)
                found = encode_images(self.sam, pixels[None]).half()[0].cpu().numpy()
                if not np.isfinite(found).all():
                    raise ModelError("inf or nan in SAM's embedding of the image: give another SAM")
                seen.embedding = found
        return LivePriors(samples, items, self.identity, seen.embedding, seen.sam_box)

    def _phrases(
        self,
        priors: LivePriors,
        index: int,
        item: SamplePriors,
        text: str,
        phrases: Sequence[Sequence[int]],
        scores: np.ndarray | None,
    ) -> list[Phrase]:
        """item: the priors of the phrases, one object each.  phrases: the words of each, numbers in `text`."""
        inputs = batch_of(priors, [(index, item)], self.head, self.device).inputs.to(self.device)
        words, found = split_words(text), []
        for number, (coarse, refined) in enumerate(object_masks(run(self.head, inputs), inputs)):
            group = tuple(phrases[number])
            start, end = trimmed(text, words[group[0]].start, words[group[-1]].end)
            found.append(
                Phrase(
                    text=text[start:end],
                    start=start,
                    end=end,
                    words=group,
                    score=None if scores is None else float(scores[number]),
                    rle=encode(coarse if refined is None else refined),
                    coarse_rle=None if refined is None else encode(coarse),
                )
            )
        return found


class _Watch:
    """Seconds by part, with the GPUs waited for."""

    def __init__(self, wait: Callable[[], None], **seconds: float):
        self.wait, self.seconds = wait, dict.fromkeys(PARTS, 0.0) | seconds

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[part] += time.perf_counter() - start


def _sample(task: Task, image: Image.Image, prompt: str, *, reply: Reply | None = None, phrase: str = "") -> Sample:
    """What is looked at, as evaluation knows it: an answer, or a phrase that is said as RefCOCO's are."""
    return Sample(
        sample_id="live",
        dataset="live",
        split="live",
        task=task,
        image_id="live",
        image_path="live",
        height=image.height,
        width=image.width,
        prompt=prompt,
        pieces=(Piece(text=phrase, object=0), Piece(text=".")) if phrase else (),
        objects=(),
        reply=reply,
    )
