"""The live grounder against extract -> evaluate: the same answers, phrases, scores and masks, bit for bit where no keys
are reused; λ, turns, given words, and what is refused."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.families import save_family
from cache.derive import derive, encoded, pruned
from cache.priors import Priors
from cache.store import Store
from manifests.errors import DatasetError, IdentityMismatch, ModelError, PipelineError
from manifests.schema import Sample
from stages.evaluate.scoring import LAMBDA, choose_phrases, phrase_masks, runs_of, score_words
from stages.ground import Answer, Grounder, Grounding
from stages.train_head.data import read_batch
from stages.train_head.heads.base import to_image_masks
from stages.train_head.heads.checkpoint import load_head, save_head
from stages.train_head.heads.hub import fetch_head
from tests.helpers import cli

HEAD = fetch_head("tiny")


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    """The embedded models."""
    return Grounder.load()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data_root: Path, small_cache: Path) -> Path:
    """A cache of captions and one of single expressions, every pass of one sample: nothing is padded."""
    folder = tmp_path_factory.mktemp("alone")
    common = ["--data-root", data_root, "--images", small_cache / "images", "--batch-size", 1, "--local"]
    cli("extract", "--dataset", "scenes-gcg", "--cache", folder / "gcg", *common)
    cli(
        "extract",
        "--dataset",
        "scenes-refcoco",
        "--splits",
        "val",
        "--context",
        "alone",
        "--cache",
        folder / "refs",
        *common,
    )
    return folder


def image_of(sample: Sample, data_root: Path) -> Path:
    return data_root / sample.image_path


def fresh(grounder: Grounder, priors: Priors, index: int, data_root: Path) -> tuple[Answer, Sample]:
    """The live answer to a cached question."""
    sample = priors.samples[index]
    return grounder.answer(image_of(sample, data_root), sample.prompt), sample


def masks(grounding: Grounding) -> np.ndarray:
    return np.stack([phrase.mask for phrase in grounding.phrases])


def test_answers_and_masks_are_those_of_extract_and_evaluate(grounder: Grounder, alone: Path, data_root: Path) -> None:
    """Bit for bit without the reuse of keys; with it within the rounding of float16."""
    priors, head = Priors.open(alone / "gcg"), load_head(HEAD)
    grounded = 0
    for index in range(len(priors)):
        answer, sample = fresh(grounder, priors, index, data_root)
        assert sample.reply is not None and answer.reply == sample.reply
        item = priors.read(index)
        found = choose_phrases(head, priors, index, item, "cpu", LAMBDA)
        scores = score_words(head, priors, index, item, "cpu")
        assert item is not None and found is not None and scores is not None
        expected = phrase_masks(head, priors, index, item, found[0], "cpu")
        reused = grounder.ground(answer)
        same = grounder.ground(replace(answer, past=None, priors=None))
        assert [list(phrase.words) for phrase in same.phrases] == found[0]
        assert [phrase.score for phrase in same.phrases] == found[1].tolist()
        assert [word.score for word in same.words] == scores.tolist()
        np.testing.assert_array_equal(same.attention, item.attention)
        np.testing.assert_array_equal(masks(same), expected)
        assert answer.past is None and [p.words for p in reused.phrases] == [p.words for p in same.phrases]
        np.testing.assert_allclose([p.score for p in reused.phrases], found[1], atol=1e-4)
        assert (masks(reused) != expected).mean() < 1e-3
        grounded += len(found[0])
    assert grounded > 8


def test_given_words_are_those_of_extract_and_evaluate(grounder: Grounder, alone: Path, data_root: Path) -> None:
    priors, head = Priors.open(alone / "refs"), load_head(HEAD)
    for index in range(6):
        sample = priors.samples[index]
        (described,) = sample.objects
        found = grounder.segment(image_of(sample, data_root), described.phrase, prompt=sample.prompt)
        batch = read_batch(priors, [index], head)
        assert batch is not None
        with torch.no_grad():
            (logits,) = to_image_masks(head(batch.inputs), batch.inputs)
        assert logits.refined is not None
        np.testing.assert_array_equal(found.phrases[0].mask, (logits.refined[0] > 0).numpy())
        np.testing.assert_array_equal(found.phrases[0].coarse_mask, (logits.coarse[0] > 0).numpy())
        np.testing.assert_array_equal(found.attention, batch.items[0].attention)


def test_several_given_words_are_each_as_if_alone(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    sample = Priors.open(small_cache).samples[0]
    seen = grounder.look(image_of(sample, data_root))
    given = ["the ring", "  the large\n red square ", "grass"]
    together = grounder.segment(seen, given)
    assert (
        together.text == "the ring\nthe large red square\ngrass" and together.question is None and together.lam is None
    )
    assert [p.text for p in together.phrases] == together.text.split("\n")
    assert [p.words for p in together.phrases] == [(0, 1), (2, 3, 4, 5), (6,)]
    for k, phrase in enumerate(together.phrases):
        assert together.text[phrase.start : phrase.end] == phrase.text
        single = grounder.segment(seen, given[k])
        assert single.phrases[0].rle == phrase.rle and single.phrases[0].score is None
        np.testing.assert_array_equal(single.attention_of(0), together.attention_of(phrase.words[-1]))


def test_another_lambda_does_not_run_the_lmm_again(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    sample = Priors.open(small_cache).samples[0]
    answer = grounder.answer(image_of(sample, data_root), "What is in the picture?")
    first = grounder.ground(answer)
    assert first.seconds["capture"] > 0 and first.seconds["answer"] == answer.seconds
    scores = np.array([word.score for word in first.words])
    for lam in (0.02, float(np.median(scores)), 0.999):
        again = grounder.ground(answer, lam=lam)
        assert again.seconds["capture"] == again.seconds["sam"] == 0
        assert again.attention is first.attention
        assert [list(p.words) for p in again.phrases] == runs_of(np.where(scores > lam, 0, -1))
        for phrase in again.phrases:
            assert phrase.score == pytest.approx(scores[list(phrase.words)].mean())
    assert not again.phrases and set(again.numbers) == {-1}


def test_a_grounding_is_plain_data(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    sample = Priors.open(small_cache).samples[0]
    found = grounder.ground(grounder.answer(image_of(sample, data_root), "What is in the picture?"))
    copied = pickle.loads(pickle.dumps(found))
    assert copied.record() == found.record() and copied.phrases == found.phrases
    height, width = found.image.height, found.image.width
    for word, number in zip(found.words, found.numbers, strict=True):
        assert found.text[word.start : word.end] == word.text
        assert (number >= 0) == (word.score > LAMBDA)
    assert all(phrase.mask.shape == (height, width) and phrase.mask.dtype == bool for phrase in found.phrases)
    maps = found.attention_of(0)
    side = found.attention.shape[-1]
    assert maps.shape[1:] == (
        (side, round(side * width / height)) if height > width else (round(side * height / width), side)
    )


def test_streaming_turns_and_own_settings(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    sample = Priors.open(small_cache).samples[0]
    seen, pieces = grounder.look(image_of(sample, data_root)), []
    first = grounder.answer(seen, "What is in the picture?", on_text=pieces.append)
    assert "".join(pieces).strip() == first.text and len(pieces) > 3
    second = grounder.answer(seen, "how many rings are there ?", after=first)
    assert second.turns == (("What is in the picture?", first.text),)
    assert second.prompt.ids[: len(first.prompt.ids)] == first.prompt.ids
    assert second.prompt.ids[len(first.prompt.ids) :][: len(first.reply.ids)] == list(first.reply.ids)
    assert grounder.ground(second).text == second.text
    own = [grounder.answer(seen, "What is in the picture?", own_settings=True, seed=s).text for s in (0, 0)]
    assert own[0] == own[1]
    cut = grounder.answer(seen, "What is in the picture?", max_new_tokens=3)
    assert not cut.finished and len(cut.reply.ids) <= 3


def test_a_turn_belongs_to_its_image(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    first, other = (image_of(sample, data_root) for sample in Priors.open(small_cache).samples[:2])
    answer = grounder.answer(first, "What is in the picture?")
    again = grounder.answer(first, "how many rings are there ?", after=answer)  # the same file, opened again
    assert again.seen is answer.seen
    with pytest.raises(DatasetError, match="about another image"):
        grounder.answer(other, "how many rings are there ?", after=answer)


def test_where_a_gpu_has_no_room_half_of_the_words_are_captured_at_a_time(
    grounder: Grounder, data_root: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Priors.open(small_cache).samples[0]
    answer = grounder.answer(image_of(sample, data_root), "What is in the picture?")
    whole = grounder.ground(replace(answer))
    captured, sizes = grounder.lmm.run, []

    def small(batch: list, length: int | None = None, past: object = None) -> object:
        sizes.append(len(batch[0].object_tokens))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("made to fail")
        return captured(batch, length, past)

    monkeypatch.setattr(grounder.lmm, "run", small)
    parts = grounder.ground(replace(answer, priors=None))
    assert max(sizes) > 5 and sum(size for size in sizes if size <= 5) == len(parts.words)
    np.testing.assert_array_equal(parts.attention, whole.attention)
    assert [p.rle for p in parts.phrases] == [p.rle for p in whole.phrases]


def test_threads_share_a_grounder(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    images = [image_of(sample, data_root) for sample in Priors.open(small_cache).samples[:4]]

    def said(image: Path) -> tuple[str, list[str]]:
        found = grounder.ground(grounder.answer(image, "What is in the picture?"))
        return found.text, [phrase.rle["counts"] for phrase in found.phrases]

    alone = [said(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(said, images)) == alone
    assert len({text for text, _ in alone}) > 1


def test_an_answer_without_words_has_no_phrases(grounder: Grounder, data_root: Path, small_cache: Path) -> None:
    sample = Priors.open(small_cache).samples[0]
    answer = grounder.answer(image_of(sample, data_root), "What is in the picture?")
    silent = replace(answer, text="", reply=replace(answer.reply, ids=(), words=(), text=""), past=None)
    found = grounder.ground(silent)
    assert found.words == () and found.phrases == () and found.record()["phrases"] == []


def test_what_is_refused(grounder: Grounder, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30))
    for question in ("", " \n", "a" * 10_001, "\ud800", "look <image>"):
        with pytest.raises(PipelineError):
            grounder.answer(image, question)
    for phrases in ("", [], ["ring", " "], "a" * 10_001, "<image>"):
        with pytest.raises(PipelineError):
            grounder.segment(image, phrases)
    with pytest.raises(PipelineError, match="at least 1"):
        grounder.answer(image, "What is in the picture?", max_new_tokens=0)
    with pytest.raises(DatasetError, match="context"):
        grounder.answer(image, "ring " * 1200)
    with pytest.raises(DatasetError, match="context"):
        grounder.segment(image, "ring " * 1200)
    answer = grounder.answer(image, "What is in the picture?")
    for lam in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(PipelineError, match="between 0 and 1"):
            grounder.ground(answer, lam=lam)
    grounder.ground(answer)  # nothing of all that stays behind


def test_other_models_than_the_heads_are_refused(tmp_path: Path) -> None:
    other = save_family("llava", tmp_path / "llava")
    with pytest.raises(IdentityMismatch, match=r"lmm\.(files|layers)"):
        Grounder.load(lmm=str(other), head=HEAD)
    for wrong in ({"gpus": 3}, {"device": "cuda:99"}, {"device": "abacus"}):
        with pytest.raises(PipelineError, match=r"GPUs here|no such device"):
            Grounder.load(**wrong)
    nameless = load_head(HEAD)
    nameless.priors = None
    save_head(nameless, tmp_path / "nameless")
    with pytest.raises(ModelError, match="which priors"):
        Grounder.load(head=tmp_path / "nameless")


def test_a_head_without_a_trained_selector_grounds_given_words_only(tmp_path: Path) -> None:
    head = load_head(HEAD)
    head.record["data"] = [row for row in head.record["data"] if row["task"] == "referring"]
    save_head(head, tmp_path / "head")
    grounder, image = Grounder.load(head=tmp_path / "head"), Image.new("RGB", (40, 30), "green")
    assert grounder.segment(image, "grass").phrases
    with pytest.raises(ModelError, match="no trained keyword selector"):
        grounder.ground(grounder.answer(image, "What is in the picture?"))


def test_heads_of_derived_caches_see_what_they_were_trained_on(
    grounder: Grounder, alone: Path, data_root: Path, tmp_path: Path
) -> None:
    """Some of the maps, in eight bits: a live answer is treated as that cache's were."""
    source = Store.open(alone / "gcg")
    some = derive(source, tmp_path / "some", pruned(source, [3, 0, 17], how={}))
    derive(some, tmp_path / "packed", encoded(some, "log8"))
    priors = Priors.open(tmp_path / "packed", need_images=False)
    cli(
        "train-head", "--cache", tmp_path / "packed", "--out", tmp_path / "head", "--epochs", 1, expect=2
    )  # no split train
    head = load_head(HEAD)
    kind = type(head)
    packed = kind(replace(head.shape, channels=3), head.config)
    packed.priors, packed.record = priors.identity, head.record
    save_head(packed, tmp_path / "head")
    live = Grounder.load(head=tmp_path / "head")
    answer, _ = fresh(live, priors, 0, data_root)
    found = live.ground(replace(answer, past=None))
    item = priors.read(0)
    assert item is not None and found.attention.shape[1] == 3
    np.testing.assert_array_equal(found.attention, item.attention)
