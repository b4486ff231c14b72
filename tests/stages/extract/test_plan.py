"""The plan against plain bookkeeping: every usable sample once, slots disjoint, batches of one padded length."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.build import build
from manifests.masks import encode
from manifests.schema import Object, Piece, Sample
from stages.extract import plan as module
from stages.extract.plan import SHARD_BYTES, Plan, WordCount, make_plan, plan_images
from stages.extract.presets import PRESETS, resolve_lmm
from stages.extract.processor import LMMProcessor
from stages.extract.sam import SAM_PRESETS

TINY = resolve_lmm("tiny")


@pytest.fixture(scope="module")
def samples(data_root: Path) -> list[Sample]:
    return build("scenes", data_root)


def planned(samples: list[Sample], root: Path, batch_size: int = 4) -> Plan:
    images = plan_images(samples, root, SAM_PRESETS["tiny"])
    return make_plan(samples, LMMProcessor(TINY), TINY, SAM_PRESETS["tiny"], images, batch_size=batch_size)


def test_slots_are_disjoint_and_batches_share_a_length(
    samples: list[Sample], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_UNIT", 16)  # several units
    plan = planned(samples, data_root)
    assert [row.sample for row in plan.rows] == list(range(len(samples)))
    assert plan.units > 3
    capacity = {spec.name: spec.slots_per_unit for spec in plan.arrays}
    taken: defaultdict[str, list[int]] = defaultdict(list)
    batches: defaultdict[tuple[int, int], list] = defaultdict(list)
    prompt = len(LMMProcessor(TINY).prompt(samples[0].prompt, (96, 96)).ids)
    for row, sample in zip(plan.rows, samples, strict=True):
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
    for row, sample in zip(planned(samples, data_root).rows, samples, strict=True):
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
    assert [row.error is None for row in plan.rows] == [True, False, False, False, False, True]
    for word, failure in zip(faults, plan.failures, strict=True):
        assert word in str(failure["reason"]), failure
    assert not any(str(data_root) in str(failure["reason"]) for failure in plan.failures)
    assert plan.objects == len(good.objects) + len(samples[1].objects)


def test_images_are_planned_once_per_content(samples: list[Sample], data_root: Path) -> None:
    row_of, rows, missing = plan_images(samples, data_root, SAM_PRESETS["tiny"])
    contents = {path: (data_root / path).read_bytes() for path in row_of}
    assert not missing
    assert len(rows) == len(set(contents.values())) < len(contents)  # train images are there for RefCOCO and for PNG
    for path, row in row_of.items():
        assert (data_root / rows[row].path).read_bytes() == contents[path]


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
