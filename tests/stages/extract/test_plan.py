"""The plan against plain bookkeeping: every usable sample once, slots disjoint, batches of one padded length."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.plan import IMAGE_SCHEMA, ImageRows, PlanRow, PlanRows, rows_bytes
from manifests.build import build
from manifests.masks import encode
from manifests.schema import Object, Piece, Sample, problem
from stages.extract import plan as module
from stages.extract.grids.view import square_view
from stages.extract.images import centred_box, corner_box
from stages.extract.plan import SHARD_BYTES, Images, Plan, make_plan, plan_images
from stages.extract.presets import PRESETS, resolve_lmm
from stages.extract.processor import Answer, LMMProcessor, Prompt
from stages.extract.sam import SAM_PRESETS
from stages.extract.texts import WordCount

TINY = resolve_lmm("tiny")


@pytest.fixture(scope="module")
def samples(data_root: Path) -> list[Sample]:
    """All that can be planned without the LMM: questions wait for its answers."""
    return [sample for sample in build("scenes", data_root) if sample.task != "reasoning"]


def planned(samples: list[Sample], root: Path, batch_size: int = 4) -> Plan:
    images = plan_images(samples, root, SAM_PRESETS["tiny"])
    return make_plan(samples, LMMProcessor(TINY), TINY, SAM_PRESETS["tiny"], images, batch_size=batch_size)


def rows_of(plan: Plan) -> list[PlanRow]:
    return list(PlanRows(pa.py_buffer(rows_bytes(plan.rows))))


def test_slots_are_disjoint_and_batches_share_a_length(
    samples: list[Sample], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_UNIT", 16)  # several units
    plan = planned(samples, data_root)
    assert plan.rows.column("sample").to_pylist() == list(range(len(samples)))
    assert plan.units > 3
    capacity = {spec.name: spec.slots_per_unit for spec in plan.arrays}
    taken: defaultdict[str, list[int]] = defaultdict(list)
    batches: defaultdict[tuple[int, int], list] = defaultdict(list)
    prompt = len(LMMProcessor(TINY).prompt(samples[0].prompt, (96, 96)).ids)
    for row, sample in zip(rows_of(plan), samples, strict=True):
        assert row.error is None and row.objects == len(sample.objects)
        extents = {
            "attention": (row.slot, row.objects),
            "hidden": (row.token_slot, sum(row.token_counts)),
            "answer_hidden": (row.answer_slot, len(row.answer_ids)),
        }
        for name, (start, count) in extents.items():
            assert start // capacity[name] == (start + max(count, 1) - 1) // capacity[name] == row.unit
            taken[name] += range(start, start + count)
        batches[row.unit, row.batch].append(row)
    for slots in taken.values():
        assert len(slots) == len(set(slots))
    for rows in batches.values():
        assert len(rows) <= 4
        assert {row.length for row in rows} == {prompt + max(len(row.answer_ids) for row in rows)}


def test_tokens_of_an_object_are_its_words(samples: list[Sample], data_root: Path) -> None:
    tokenizer = LMMProcessor(TINY).tokenizer
    for row, sample in zip(rows_of(planned(samples, data_root)), samples, strict=True):
        positions = iter(row.token_positions)
        for item, count in zip(sample.objects, row.token_counts, strict=True):
            ids = [row.answer_ids[next(positions)] for _ in range(count)]
            assert tokenizer.decode(ids).split() == item.phrase.split()


def broken(sample: Sample) -> dict[str, Sample]:
    """The sample with one fault each: what the reason has to say -> the sample."""
    first, size = sample.objects[0], (sample.height, sample.width)
    empty = encode(np.zeros(size, bool))
    turned = encode(np.ones(size[::-1] if size[0] != size[1] else (3, 4), bool))

    def with_object(item: Object) -> Sample:
        return replace(sample, objects=(item, *sample.objects[1:]))

    silent = tuple(Piece(text="", object=0) if p.object == 0 else p for p in sample.pieces)
    return {
        "no pixels": with_object(replace(first, mask=empty)),
        "the mask of object": with_object(replace(first, mask=turned)),
        "empty": replace(sample, pieces=silent),
        "missing": replace(sample, image_path="train2014/none.jpg"),
    }


def test_unusable_samples_get_a_reason_and_no_slots(samples: list[Sample], data_root: Path) -> None:
    good = samples[0]
    faults = broken(good)
    mixed = [good, *(replace(s, sample_id=f"bad-{k}") for k, s in enumerate(faults.values())), samples[1]]
    plan = planned(mixed, data_root)
    assert [row.error is None for row in rows_of(plan)] == [True, False, False, False, False, True]
    for word, failure in zip(faults, plan.failures, strict=True):
        assert word in str(failure["reason"]), failure
    assert not any(str(data_root) in str(failure["reason"]) for failure in plan.failures)
    assert plan.objects == len(good.objects) + len(samples[1].objects)


def test_images_are_planned_once_per_content(samples: list[Sample], data_root: Path) -> None:
    images = plan_images(samples, data_root, SAM_PRESETS["tiny"])
    rows = ImageRows(pa.py_buffer(rows_bytes(images.rows)))
    contents = {path: (data_root / path).read_bytes() for path in images.row_of}
    assert not images.missing
    assert len(rows) == len(set(contents.values())) < len(contents)  # train images are there for RefCOCO and for PNG
    for path, row in images.row_of.items():
        assert (data_root / rows[row].path).read_bytes() == contents[path]
        assert rows[row].image == sha256(contents[path]).hexdigest()
    size = {s.image_path: (s.height, s.width) for s in samples}
    assert [(r.height, r.width) for r in rows] == [size[r.path] for r in rows]
    assert [r.box for r in rows] == [corner_box(r.width, r.height, 128).as_tuple() for r in rows]
    reversed_rows = images.rows.take(list(range(len(rows)))[::-1])
    among = images.among(reversed_rows)
    assert among is not None and among.row_of == {p: len(rows) - 1 - row for p, row in images.row_of.items()}
    assert images.among(reversed_rows.slice(1)) is None


def test_the_estimate_without_a_tokenizer_is_of_the_right_size(samples: list[Sample], data_root: Path) -> None:
    sam = SAM_PRESETS["tiny"]
    guess = make_plan(
        samples, WordCount(TINY), TINY, sam, plan_images(samples, data_root, sam, hashed=False), batch_size=4
    )
    exact = planned(samples, data_root)
    assert guess.objects == exact.objects
    assert 0.5 < guess.priors_bytes / exact.priors_bytes < 2


def test_a_sample_with_more_objects_than_a_shard_was_made_for_is_planned(
    samples: list[Sample], data_root: Path
) -> None:
    """LLaVA-NeXT in two views: 16.8 MB an object, three in 64 MiB; a narrative has more."""
    lmm, sam = PRESETS["llava-next-mistral-7b"].with_views(2), SAM_PRESETS["vit_l"]
    images = plan_images(samples, data_root, sam, hashed=False)
    plan = make_plan(samples, WordCount(lmm), lmm, sam, images, batch_size=4)
    most = max(len(sample.objects) for sample in samples)
    assert most * lmm.object_bytes > SHARD_BYTES
    assert not plan.failures and plan.arrays[0].slots_per_unit == most


WORDS = st.lists(st.sampled_from(["red", "ring", "a", "the-left-one", ""]), max_size=4).map(" ".join)
SIZES = st.sampled_from([(6, 8), (8, 6), (5, 50)])  # the last one is refused


class Letters:
    """An LMM's texts, easy to see through: a token a letter, refusing images of 5 x 50 pixels."""

    preset = replace(TINY, grid=(2, 3), layers=2, width=4)
    context: int | None = None

    def prompt(self, prompt: str, size: tuple[int, int]) -> Prompt:
        if size[0] == 10 * size[1]:
            raise ValueError("too wide")
        columns = range(9)
        return Prompt(ids=[0] * (9 + len(prompt)), views=(square_view(columns, centred_box(*size, 9)),), types={})

    def answer(self, sample: Sample) -> Answer:
        letters = [(letter, piece.object, k) for k, piece in enumerate(sample.pieces) for letter in piece.text.strip()]
        return Answer(
            ids=[ord(letter) for letter, _, _ in letters],
            objects=[-1 if owner is None else owner for _, owner, _ in letters],
            words=[word for _, _, word in letters],
        )


@st.composite
def mixed_samples(draw: st.DrawFn) -> list[Sample]:
    """Sound ones and unusable ones of every sort."""
    samples = []
    for number in range(draw(st.integers(0, 12))):
        height, width = draw(SIZES)
        count = draw(st.integers(0, 3))
        mask = encode(np.full((height, width), draw(st.integers(0, 9)) > 0))
        texts = draw(st.lists(st.tuples(WORDS, st.none() | st.integers(0, max(0, count - 1))), max_size=5))
        spoken = [Piece(text="it" * draw(st.integers(1, 3)), object=k) for k in range(count)]
        objects = [
            Object(object_id=str(k), mask=mask, is_thing=True, plural=False, category="", phrase=f"{k}")
            for k in range(count)
        ]
        samples.append(
            Sample(
                sample_id=str(number), dataset="d", split="s", task="referring", image_id="", prompt=draw(WORDS),
                image_path=draw(st.sampled_from(["a.jpg", "b.jpg", "gone.jpg"])), height=height, width=width,
                pieces=(*spoken, *(Piece(text=text, object=owner) for text, owner in texts)), objects=tuple(objects),
                error=draw(st.sampled_from([None, None, None, "the reader found it broken"])),
            )
        )  # fmt: skip
    return samples


def plain_plan(samples: list[Sample], row_of: dict[str, int], capacity: int, batch_size: int) -> list[PlanRow]:
    """The plan as one would write it down: sample by sample, then batch by batch, without columns."""
    text, usable, found = Letters(), [], {}
    for index, sample in enumerate(samples):
        refused = sample.width == 10 * sample.height
        gone = None if sample.image_path in row_of else f"{sample.image_path} is gone"
        error = sample.error or gone or problem(sample)
        if error is None and refused:
            error = f"the LMM takes no image of {sample.width}x{sample.height} pixels (too wide): leave it out"
        if error is None:
            usable.append(index)
        else:
            found[index] = PlanRow(sample=index, error=error)
    units: list[list[int]] = []
    for index in usable:
        if not units or sum(len(samples[i].objects) for i in units[-1]) + len(samples[index].objects) > capacity:
            units.append([])
        units[-1].append(index)
    answers = {i: text.answer(samples[i]) for i in usable}
    tokens = {i: answers[i].tokens_of(samples[i].slots) for i in usable}
    length = {i: 9 + len(samples[i].prompt) + len(answers[i].ids) for i in usable}
    token_capacity = max([1, *(sum(sum(map(len, tokens[i])) for i in unit) for unit in units)])
    answer_capacity = max([1, *(sum(len(answers[i].ids) for i in unit) for unit in units)])
    round_up = lambda size, chunk: -(-size // chunk) * chunk  # noqa: E731
    for number, unit in enumerate(units):
        slot = number * capacity
        token_slot = number * round_up(token_capacity, 64 * 1024 // (2 * 2 * 4))
        answer_slot = number * round_up(answer_capacity, 64 * 1024 // (2 * 4))
        together = sorted(unit, key=lambda i: (length[i], i))
        batch_of = {i: together.index(i) // batch_size for i in unit}
        for i in unit:
            positions = [p for group in tokens[i] for p in group]
            box = centred_box(samples[i].width, samples[i].height, 9).as_tuple()
            found[i] = PlanRow(
                sample=i, unit=number, batch=batch_of[i], slot=slot, objects=len(samples[i].objects),
                length=max(length[j] for j in unit if batch_of[j] == batch_of[i]), token_slot=token_slot,
                token_counts=tuple(map(len, tokens[i])), token_positions=tuple(positions), answer_slot=answer_slot,
                answer_ids=tuple(answers[i].ids), answer_word=tuple(answers[i].words),
                answer_object=tuple(answers[i].objects), image=row_of[samples[i].image_path], box=box,
            )  # fmt: skip
            slot, token_slot = slot + len(samples[i].objects), token_slot + len(positions)
            answer_slot += len(answers[i].ids)
    return [found[index] for index in range(len(samples))]


@settings(max_examples=60, deadline=None)
@given(mixed_samples(), st.integers(3, 6), st.integers(1, 3))
def test_the_plan_against_one_made_by_plain_loops(samples: list[Sample], capacity: int, batch_size: int) -> None:
    row_of = {"a.jpg": 1, "b.jpg": 0}
    images = Images(row_of=row_of, rows=IMAGE_SCHEMA.empty_table(), missing={"gone.jpg": "gone.jpg is gone"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGEST_UNIT", capacity)
        plan = make_plan(samples, Letters(), Letters.preset, SAM_PRESETS["tiny"], images, batch_size=batch_size)
    expected = plain_plan(samples, row_of, capacity, batch_size)
    assert rows_of(plan) == expected
    assert plan.failures == [{"sample": row.sample, "reason": row.error} for row in expected if row.error]
    placed = [row for row in expected if row.error is None]
    assert plan.units == len({row.unit for row in placed}) and plan.objects == sum(row.objects for row in placed)
    for unit, objects in enumerate(plan.objects_of_units):
        assert objects == sum(row.objects for row in placed if row.unit == unit)


def test_the_batch_size_is_measured_with_the_first_of_the_longest(samples: list[Sample], data_root: Path) -> None:
    sam, text = SAM_PRESETS["tiny"], WordCount(TINY)
    asked: list[Sample] = []
    images = plan_images(samples, data_root, sam, hashed=False)
    plan = make_plan(samples, text, TINY, sam, images, batch_size=lambda sample: asked.append(sample) or 3)
    length = [len(text.prompt(s.prompt, (s.width, s.height)).ids) + len(text.answer(s).ids) for s in samples]
    assert asked == [samples[length.index(max(length))]] and plan.batch_size == 3


def test_a_text_that_is_more_than_text_fails_alone(samples: list[Sample], data_root: Path) -> None:
    """The image's token in a prompt or in an expression: a second image to the LMM. Others of that size are fine."""
    first, second, third = (s for s in samples[:3])
    asked = replace(first, prompt="look <image> here")
    (piece, *rest) = second.pieces
    told = replace(second, pieces=(replace(piece, text=f"{piece.text} </s>"), *rest))
    plan = planned([asked, told, first, second, third], data_root)
    assert [row.error is None for row in rows_of(plan)] == [False, False, True, True, True]
    reasons = [failure["reason"] for failure in plan.failures]
    assert "'<image>', which is no text" in reasons[0] and "'</s>', which is no text" in reasons[1]
