"""A head on cached priors: against a plain loop, failed samples, ignored pixels, phrases of the LMM's own captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.priors import Priors, SamplePriors
from manifests.errors import ModelError
from manifests.masks import decode, empty, encode
from manifests.schema import Sample
from stages.evaluate.gcg import pair_ious
from stages.evaluate.scoring import choose_phrases, held_out, phrase_masks, run_head, runs_of
from stages.train_head.data import read_batch
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput, to_image_masks
from stages.train_head.heads.checkpoint import load_head


@pytest.fixture(scope="module")
def head(small_head: Path) -> Head:
    return load_head(small_head)


@pytest.fixture
def priors(small_cache: Path) -> Priors:
    return Priors.open(small_cache)


class Retold:
    """Priors with some samples of the manifest replaced."""

    def __init__(self, priors: Priors, changed: dict[int, Sample]) -> None:
        self.priors, self.failures, self.identity = priors, dict(priors.failures), priors.identity
        self.samples: Any = [changed.get(index, sample) for index, sample in enumerate(priors.samples)]

    def read(self, index: int) -> SamplePriors | None:
        return None if index in self.failures else self.priors.read(index)

    def embedding(self, index: int) -> np.ndarray:
        return self.priors.embedding(index)

    def image_box(self, index: int) -> tuple[int, int, int, int, int]:
        return self.priors.image_box(index)

    def advise(self, indices: Any) -> None: ...


def last_masks(head: Head, priors: Any, index: int) -> np.ndarray:
    """bool [objects, height, width], one sample alone."""
    batch = read_batch(priors, [index], head)
    with torch.no_grad():
        (logits,) = to_image_masks(head(batch.inputs), batch.inputs)
    return (logits.refined > 0).numpy()


def test_numbers_equal_a_plain_loop_and_failed_samples_are_misses(head: Head, priors: Priors) -> None:
    indices = held_out(priors, ["testA"])
    plain = run_head(head, priors, indices, batch_size=1)
    failing = indices[0]
    priors.failures[failing] = "made to fail"
    outcome = run_head(head, priors, indices, batch_size=3)
    sample = priors.samples[failing]
    assert outcome.failures == {sample.sample_id: "made to fail"}
    missed = [r for r in outcome.objects if r.failed]
    assert [r.area for r in missed] == [int(decode(o.mask).sum()) for o in sample.objects]
    assert all(r.intersection == 0 and r.union == r.area for r in missed)
    others = [r for r in outcome.objects if not r.failed]
    expected = [r for r in plain.objects if r.sample_id != sample.sample_id]
    for a, b in zip(others, expected, strict=True):
        assert (a.phrase, a.area, a.sample, a.number) == (b.phrase, b.area, b.sample, b.number)
        assert abs(a.intersection - b.intersection) <= 2 + 0.01 * b.area  # batches round at the threshold
    for result in expected[:6]:
        mask = last_masks(head, priors, result.sample)[result.number]
        truth = decode(priors.samples[result.sample].objects[result.number].mask)
        pairs = list(zip(mask.flat, truth.flat, strict=True))
        assert result.intersection == sum(p and t for p, t in pairs) and result.union == sum(p or t for p, t in pairs)
        assert result.pixels == mask.size


def question(priors: Priors) -> int:
    """A question about something that is there."""
    return next(i for i in priors.samples.where(task=["reasoning"]) if decode(priors.samples[i].objects[0].mask).any())


def test_ignored_pixels_count_neither_as_truth_nor_as_prediction(head: Head, priors: Priors) -> None:
    index = question(priors)
    sample = priors.samples[index]
    mask, truth = last_masks(head, priors, index)[0], decode(sample.objects[0].mask)
    ignored = np.zeros_like(truth)
    ignored[:, : truth.shape[1] // 2] = True
    target = replace(sample.objects[0], ignore=encode(ignored))
    (result,) = run_head(head, Retold(priors, {index: replace(sample, objects=(target,))}), [index]).objects
    assert result.area == (truth & ~ignored).sum()
    assert result.intersection == (mask & truth & ~ignored).sum()
    assert result.union == ((mask | truth) & ~ignored).sum()
    unanswered = Retold(priors, {index: replace(sample, objects=(target,))})
    unanswered.failures[index] = "no answer"
    (missed,) = run_head(head, unanswered, [index]).objects
    assert (missed.area, missed.intersection, missed.union) == (result.area, 0, result.area)


def test_a_question_about_nothing(head: Head, priors: Priors) -> None:
    index = question(priors)
    sample = priors.samples[index]
    nothing = replace(sample.objects[0], mask=empty(sample.height, sample.width), ignore=None)
    (result,) = run_head(head, Retold(priors, {index: replace(sample, objects=(nothing,))}), [index]).objects
    assert result.area == result.intersection == 0
    assert result.union == last_masks(head, priors, index).sum()


def test_conversations_are_searched_for_phrases(head: Head, priors: Priors) -> None:
    indices = priors.samples.where(task=["conversation"])
    outcome = run_head(head, priors, indices, batch_size=3, lam=0.05)
    assert not outcome.objects and not outcome.words and len(outcome.conversations) == len(indices)
    assert sum(len(r.phrases) for r in outcome.conversations) > 0
    for index, result in zip(indices, outcome.conversations, strict=True):
        sample = priors.samples[index]
        words = sample.reply.text.split()
        assert result.caption == sample.reply.text and result.true_phrases == tuple(o.phrase for o in sample.objects)
        phrases, scores = choose_phrases(head, priors, index, priors.read(index), "cpu", 0.05)
        said = [" ".join(words[k] for k in phrase) for phrase in phrases]
        assert result.phrases == tuple(text.strip(" .,") or text for text in said)  # the scenes' punctuation
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)
        masks = phrase_masks(head, priors, index, priors.read(index), phrases, "cpu")
        truth = np.stack([decode(o.mask) for o in sample.objects])
        np.testing.assert_allclose(result.ious, pair_ious(masks, truth), atol=0.02)
    raised = run_head(head, priors, indices, lam=0.999)
    assert sum(len(r.phrases) for r in raised.conversations) < sum(len(r.phrases) for r in outcome.conversations)


def test_a_phrase_of_all_words_has_the_mask_of_the_whole_reply(head: Head, priors: Priors) -> None:
    """The words of a reply, merged, are one object with all its tokens: what a question's answer is."""
    index = priors.samples.where(task=["conversation"])[0]
    item = priors.read(index)
    masks = phrase_masks(head, priors, index, item, [list(range(len(item.attention)))], "cpu")
    tokens = np.bincount(item.hidden_object)
    raw = item.attention.astype(np.float64) * (item.attention_mass / item.attention[0, 0].size)[..., None, None]
    mean = (raw * tokens[:, None, None, None]).sum(0, keepdims=True) / tokens.sum()
    whole = replace(
        item,
        attention=(mean / mean.mean((-2, -1), keepdims=True)).astype(np.float16),
        hidden_object=np.zeros_like(item.hidden_object),
    )
    sample = priors.samples[index]
    told = Retold(priors, {index: replace(sample, objects=sample.objects[:1])})
    told.read = lambda _: whole  # type: ignore[method-assign]
    agreement = (last_masks(head, told, index)[0] == masks[0]).mean()
    assert agreement > 0.999


def test_a_failed_conversation_is_a_caption_without_words(head: Head, priors: Priors) -> None:
    index = priors.samples.where(task=["conversation"])[0]
    priors.failures[index] = "made to fail"
    (result,) = run_head(head, priors, [index]).conversations
    assert result.failed and result.caption == "" and result.ious.shape == (0, len(priors.samples[index].objects))


class Wordless(Head):
    """A head without a selector, and one whose masks are no numbers."""

    name = "wordless"

    def __init__(self, head: Head, value: float = 0.0) -> None:
        torch.nn.Module.__init__(self)
        self.shape, self.config, self.record, self.value = head.shape, None, {}, value

    def forward(self, batch: HeadBatch) -> HeadOutput:
        return HeadOutput(coarse=torch.full((len(batch.attention), 8, 8), self.value))

    def coarse_size(self, grid: int) -> int:
        return 8


def test_a_head_without_a_selector_says_nothing_about_words(head: Head, priors: Priors) -> None:
    chosen = priors.samples.where(split=["val"], task=["conversation", "narrative", "reasoning"])
    outcome = run_head(Wordless(head), priors, chosen)
    assert not outcome.selects and outcome.objects


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_masks_that_are_no_numbers_are_refused(head: Head, priors: Priors, value: float) -> None:
    with pytest.raises(ModelError, match="coarse logits are not finite"):
        run_head(Wordless(head, value), priors, held_out(priors, ["testB"]))


def test_runs() -> None:
    def by_hand(labels: list[int]) -> Iterator[list[int]]:
        run: list[int] = []
        for place, label in enumerate(labels):
            if run and label != labels[run[-1]]:
                yield run
                run = []
            if label >= 0:
                run.append(place)
        if run:
            yield run

    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(-1, 2, rng.integers(0, 9))
        assert runs_of(labels) == list(by_hand(labels.tolist()))
