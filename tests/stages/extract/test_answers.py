"""The LMM's own answers: asked in units, kept beside the cache, taken up again, and what samples make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cache.places import Place, place_of
from manifests.errors import CacheError, IdentityMismatch
from manifests.manifest import Samples, write_manifest
from manifests.schema import Reply, Sample
from stages.extract.answer_units import BATCH, AnswerWorker
from stages.extract.answers import ENDING, NOTHING, Answers, identity_of, is_question
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM
from stages.extract.plan import Images, plan_images
from stages.extract.presets import resolve_lmm
from stages.extract.processor import Asked, LMMProcessor
from stages.extract.sam import sam_config
from stages.extract.texts import Texts, WordCount
from stages.extract.work import WorkerConfig
from tests import s3
from tests.stages.extract.questions import questions

TINY = resolve_lmm("tiny")
IDENTITY = identity_of({"name": "tiny", "dtype": "float32"}, 60)
COUNT = 30  # of which 20 are asked: three units


def hashed(samples: list[Sample], root: Path) -> Images:
    return plan_images(samples, root, sam_config("tiny"))


def worker(root: Path, place: Place, most: int = 60) -> AnswerWorker:
    config = WorkerConfig(
        cache=place, images=place, data_root=root, lmm=TINY, dtype="float32", merge="mean", sam="tiny",
        sam_checkpoint=None, device="cpu", gpus=0, threads=1,
    )  # fmt: skip
    return AnswerWorker(config, most)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("questions")


@pytest.fixture(scope="module")
def samples(root: Path) -> list[Sample]:
    return questions(root, COUNT)


@pytest.fixture(scope="module")
def reports(root: Path, samples: list[Sample]) -> list[dict[str, Any]]:
    """What a worker says of every unit."""
    place = place_of(root / "none")
    asking = worker(root, place)
    return [asking.run(unit) for unit in Answers(place, samples, hashed(samples, root)).units]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "folder":
        yield place_of(tmp_path / "cache")
    else:
        with s3.server() as url:
            yield place_of(f"{url}/runs/cache")


def test_who_is_asked(samples: list[Sample]) -> None:
    assert [is_question(s) for s in samples[:3]] == [True, True, False]
    assert is_question(replace(samples[0], split="train"))  # a question has no text to be forced
    assert is_question(replace(samples[1], error="broken"))  # but can not be asked: a miss of its own protocol
    reply = Reply(ids=(9,), words=(0,), text="a", finished=True)
    assert not is_question(replace(samples[0], reply=reply))
    assert not any(is_question(replace(samples[1], task=task)) for task in ("referring", "narrative"))


def test_answers_are_those_of_the_lmm_asked_alone(
    root: Path, samples: list[Sample], reports: list[dict[str, Any]]
) -> None:
    place = place_of(root / "none")
    answers = Answers(place, samples, hashed(samples, root))
    answers.load(IDENTITY, overwrite=False)
    for report in reports:
        answers.add(report)
    given = answers.given_to(samples)
    lmm = FrozenLMM(TINY)
    assert len(given) == COUNT and [s.reply is not None for s in given] == [is_question(s) for s in samples]
    for before, after in list(zip(samples, given, strict=True))[:9]:
        image = open_image(root / before.image_path, (before.width, before.height))
        asked = Asked(image=lmm.prepare(image), prompt=lmm.processor.prompt(before.prompt, image.size))
        assert after == replace(before, reply=lmm.reply([asked], 60)[0] if is_question(before) else None)
    assert given[3:5] == [given[3], given[4]] and given[-1] == given[COUNT - 1]
    assert answers.tokens() == sum(len(s.reply.ids) for s in given if s.reply)


def test_a_resumed_run_asks_what_is_missing_and_ends_with_the_same_file(
    root: Path, samples: list[Sample], reports: list[dict[str, Any]], place: Place
) -> None:
    images = hashed(samples, root)
    first = Answers(place, samples, images)
    first.load(IDENTITY, overwrite=False)
    for report in reports:
        first.add(report)
    first.save()
    whole = place.read_beside(ENDING)

    cut = Answers(place, samples, images)  # killed after the units 2 and 0, in that order
    cut.load(IDENTITY | {"algorithm": 0}, overwrite=True)
    assert len(cut.missing()) == 3
    for number in (2, 0):
        cut.add(reports[number])
    cut.identity = IDENTITY
    cut.save()
    again = Answers(place, samples, images)
    again.load(IDENTITY, overwrite=False)
    assert [unit.number for unit in again.missing()] == [1]
    with pytest.raises(CacheError, match=r"answers\.parquet: answers 8 to 15 is missing; run the same command again"):
        again.given_to(samples)
    again.add(reports[1])
    again.save()
    assert place.read_beside(ENDING) == whole


def test_other_questions_are_asked_anew_and_other_settings_refused(
    root: Path, samples: list[Sample], reports: list[dict[str, Any]], tmp_path: Path
) -> None:
    place, images = place_of(tmp_path / "cache"), hashed(samples, root)
    answers = Answers(place, samples, images)
    answers.load(IDENTITY, overwrite=False)
    for report in reports:
        answers.add(report)
    answers.save()

    def missing(changed: list[Sample], of: Images = images) -> list[int]:
        found = Answers(place, changed, of)
        found.load(IDENTITY, overwrite=False)
        return [unit.number for unit in found.missing()]

    assert missing(samples) == []
    assert missing([*samples[:13], replace(samples[13], prompt="What ?"), *samples[14:]]) == [1]
    other = questions(tmp_path / "data", COUNT)
    (tmp_path / "data" / "0.png").write_bytes((tmp_path / "data" / "1.png").read_bytes())  # another image
    assert missing(other, hashed(other, tmp_path / "data")) == [0]
    assert missing(samples[:24]) == []  # the same units but for their end
    other_settings = identity_of({"name": "tiny", "dtype": "bfloat16"}, 50)
    with pytest.raises(
        IdentityMismatch,
        match=r"max_tokens: cache has 60, this run 50; lmm.dtype: cache has \"float32\", this run \"bfloat16\"\. "
        r"Choose another --cache, or pass --overwrite",
    ):
        Answers(place, samples, images).load(other_settings, overwrite=False)
    (tmp_path / "cache.answers.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CacheError, match=r"answers\.parquet can not be read .*: delete it"):
        missing(samples)


def test_answers_to_other_questions_stay_in_the_file(
    root: Path, samples: list[Sample], reports: list[dict[str, Any]], tmp_path: Path
) -> None:
    place, images = place_of(tmp_path / "cache"), hashed(samples, root)
    whole = Answers(place, samples, images)
    whole.load(IDENTITY, overwrite=False)
    for report in reports:
        whole.add(report)
    whole.save()
    changed = [replace(samples[0], prompt="What ?"), *samples[1:12]]  # another --limit, and a unit with a new question
    few = Answers(place, changed, images)
    few.load(IDENTITY, overwrite=False)
    (unit,) = few.missing()
    few.save()  # killed
    few.add(worker(root, place).run(unit))
    few.save()
    for asked in (changed, samples):
        again = Answers(place, asked, images)
        again.load(IDENTITY, overwrite=False)
        assert not again.missing()
    table = pq.read_table(tmp_path / "cache.answers.parquet")
    assert len(table) == 21 == len({tuple(row.values()) for row in table.select(["sample_id", "prompt"]).to_pylist()})


def test_what_can_not_be_asked_has_a_reason(root: Path, tmp_path: Path) -> None:
    samples = questions(tmp_path, 5)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    (tmp_path / "4.png").unlink()
    samples[1] = replace(samples[1], error="the mask file is broken")
    samples[3] = replace(samples[3], prompt="long " * 900)
    place, images = place_of(tmp_path / "cache"), hashed(samples, tmp_path)
    answers = Answers(place, samples, images)
    answers.load(IDENTITY, overwrite=False)
    assert answers.wanted and answers.count == 2 < BATCH
    answers.add(worker(tmp_path, place).run(answers.units[0]))
    given = answers.given_to(samples)
    texts = Texts(LMMProcessor(TINY), TINY.grid, images.row_of, images.missing)
    for sample in given:
        texts.add(sample)
    assert [sample.reply for sample in given] == [NOTHING, NOTHING, None, NOTHING, NOTHING]
    assert texts.errors[1] == "the mask file is broken" and texts.errors[2] is None
    assert "0.png can not be decoded" in (texts.errors[0] or "")
    assert "the LMM's context has 1024: ask a shorter one" in (texts.errors[3] or "")
    assert "4.png is missing" in (texts.errors[4] or "")
    write_manifest(tmp_path / "manifest.parquet", given, {})
    searched = Samples(tmp_path / "manifest.parquet").searched()
    assert searched.tolist() == [False, True, False, False, True]


def planned(sample: Sample, context: int | None = None) -> Texts:
    processor = LMMProcessor(TINY)
    processor.context = context or processor.context
    texts = Texts(processor, TINY.grid, {sample.image_path: 0}, {})
    texts.add(sample)
    return texts


def test_slots_are_the_object_or_the_words(samples: list[Sample]) -> None:
    reply = Reply(ids=(7, 8, 9, 10), words=(0, 0, 1, 2), text="ab c d", finished=True)
    processor = LMMProcessor(TINY)
    for sample, owners in ((samples[0], [0, 0, 0, 0]), (samples[1], [0, 0, 1, 2])):
        answer = processor.answer(replace(sample, reply=reply))
        assert (answer.ids, answer.words, answer.objects) == ([7, 8, 9, 10], [0, 0, 1, 2], owners)
        assert WordCount(TINY).answer(replace(sample, reply=reply)) == answer
        texts = planned(replace(sample, reply=reply))
        assert texts.errors == [None] and texts.counts().tolist() == [[max(owners) + 1, 4, 4]]
    assert planned(samples[0]).errors == [
        "sample sample-0 is a question without an answer to ground: extract with --answer"
    ]
    empty = Reply(ids=(), words=(), text="", finished=True)
    assert "the LMM gave no answer" in (planned(replace(samples[1], reply=empty)).errors[0] or "")


def test_an_answer_that_fills_the_context_fails(samples: list[Sample]) -> None:
    sample, prompt = samples[0], len(LMMProcessor(TINY).prompt(samples[0].prompt, (96, 96)).ids)
    for finished, length, fits in ((True, 9, True), (True, 10, True), (False, 9, True), (False, 10, False)):
        reply = Reply(ids=(7,) * length, words=(0,) * length, text="a", finished=finished)
        (error,) = planned(replace(sample, reply=reply), prompt + 10).errors
        assert (error is None) == fits
        assert fits or "does not end within its context" in (error or "")


def test_a_text_that_is_longer_than_the_context_fails(samples: list[Sample]) -> None:
    processor, sample = LMMProcessor(TINY), samples[2]
    length = len(processor.prompt(sample.prompt, (96, 96)).ids) + len(processor.answer(sample).ids)
    assert planned(sample, length).errors == [None]
    assert planned(sample, length - 1).errors == [
        f"the image, the prompt and the text of sample sample-2 are {length} tokens, and the LMM's context has "
        f"{length - 1}: shorten the text, or leave the sample out"
    ]


def test_supposed_answers_are_the_longest_possible(root: Path, samples: list[Sample]) -> None:
    answers, processor = Answers(place_of(root / "none"), samples, hashed(samples, root)), LMMProcessor(TINY)
    for text in (processor, WordCount(TINY)):
        supposed = answers.supposed(samples, 50, text)
        assert [s.slots for s in supposed[:2]] == [1, 50]
        assert supposed[2] == samples[2]
    room = 1024 - len(processor.prompt(samples[1].prompt, (96, 96)).ids)
    longest = answers.supposed(samples, 1000, processor)[1]
    assert longest.slots == room < 1000 and planned(longest).errors == [None]
