from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.identity import table_digest
from cache.plan import ROW_SCHEMA, PlanRow, PlanRows, image_arrays, pack, priors_arrays, rows_bytes, rows_table
from manifests.errors import CacheError

COUNT = st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9))


@given(st.lists(st.tuples(COUNT, st.booleans()), max_size=40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=150)
def test_packing_against_laying_samples_one_slot_at_a_time(
    samples: list[tuple[tuple[int, int, int], bool]], objects_per_unit: int, token_chunk: int, answer_chunk: int
) -> None:
    counts = [count for count, _ in samples]
    errors = ["failed" if failed else None for _, failed in samples]
    packing = pack(
        counts, objects_per_unit=objects_per_unit, token_chunk=token_chunk, answer_chunk=answer_chunk, errors=errors
    )
    capacity = (packing.objects_per_unit, packing.tokens_per_unit, packing.answers_per_unit)
    owner: list[dict[int, int]] = [{}, {}, {}]  # slot -> sample
    units: list[list[int]] = []
    for index, count in enumerate(counts):
        unit, firsts = packing.unit[index], (packing.slot[index], packing.token_slot[index], packing.answer_slot[index])
        if errors[index] is not None or count[0] > objects_per_unit:
            assert (unit, *firsts) == (-1, -1, -1, -1) and packing.errors[index]
            assert errors[index] is None or packing.errors[index] == "failed"
            continue
        assert packing.errors[index] is None
        if not units or sum(max(counts[other][0], 1) for other in units[-1]) + max(count[0], 1) > objects_per_unit:
            units.append([])
        units[-1].append(index)
        assert unit == len(units) - 1
        for kind, (first, number) in enumerate(zip(firsts, count, strict=True)):
            for slot in range(first, first + number):
                assert slot // capacity[kind] == unit and slot not in owner[kind]
                owner[kind][slot] = index
    assert packing.units == len(units)
    assert packing.padding == tuple(len(units) * size - len(slots) for size, slots in zip(capacity, owner, strict=True))
    for size, chunk, kind in ((capacity[1], token_chunk, 1), (capacity[2], answer_chunk, 2)):
        fullest = max((sum(counts[index][kind] for index in unit) for unit in units), default=0)
        assert size % chunk == 0 and size - chunk < max(fullest, 1) <= size
        for unit, members in enumerate(units):  # no gaps before the padding
            taken = [slot - unit * size for slot, index in owner[kind].items() if index in members]
            assert sorted(taken) == list(range(len(taken)))


def test_a_sample_larger_than_a_unit_says_so() -> None:
    packing = pack([(3, 5, 5), (9, 9, 9), (1, 1, 1)], objects_per_unit=4)
    assert packing.errors == (None, "9 objects do not fit into a unit of 4; plan with a larger unit", None)
    assert packing.slot.tolist() == [0, -1, 3]
    with pytest.raises(ValueError):
        pack([], objects_per_unit=0)


def rows() -> list[PlanRow]:
    spoken = PlanRow(
        sample=0, unit=2, batch=1, length=40, slot=7, objects=2, token_slot=11, token_counts=(1, 2),
        token_positions=(0, 2, 3), answer_slot=20, answer_ids=(5, 6, 7, 8), answer_word=(0, 0, 1, 2),
        answer_object=(0, -1, 1, 1), image=3, box=(0, 4, 24, 16, 24),
    )  # fmt: skip
    return [spoken, PlanRow(sample=1, error="no pixels"), PlanRow(sample=2, unit=2, slot=9)]


def test_rows_come_back_from_parquet_and_have_the_same_bytes(tmp_path: Path) -> None:
    table = rows_table(rows(), ROW_SCHEMA)
    data = rows_bytes(table)
    assert rows_bytes(rows_table(rows(), ROW_SCHEMA)) == data
    found = PlanRows(pa.py_buffer(data))
    assert list(found) == rows() and [found[index] for index in (2, 0, -2)] == [rows()[2], rows()[0], rows()[1]]
    assert table_digest(found.table()) == table_digest(table)
    assert found.number("slot", 2) == 9
    assert found.numbers("unit").tolist() == [2, -1, 2] and found.numbers("unit").dtype == np.int8
    assert found.planned_failures() == [{"sample": 1, "reason": "no pixels"}]
    with pytest.raises(CacheError, match=r"^rows.parquet has the columns \['slot'\], expected"):
        PlanRows(pa.py_buffer(rows_bytes(pa.table({"slot": [1]}))))
    with pytest.raises(CacheError, match=r"absent is missing: restore it"):
        PlanRows(tmp_path / "absent")


@given(st.lists(st.integers(-1, 2**40), min_size=1, max_size=9), st.integers(0, 40))
@settings(max_examples=50)
def test_numbers_are_kept_in_the_smallest_dtype_that_holds_them(slots: list[int], bits: int) -> None:
    slots = [slot % 2**bits if slot >= 0 else slot for slot in slots]
    table = rows_table([PlanRow(sample=0, unit=0, slot=slot) for slot in slots], ROW_SCHEMA)
    kept = PlanRows(pa.py_buffer(rows_bytes(table))).numbers("slot")
    assert kept.tolist() == slots
    smaller = [np.iinfo(kind) for kind in "bBhHiIlL" if np.dtype(kind).itemsize < kept.itemsize]
    assert not any(kind.min <= min(slots) and max(slots) <= kind.max for kind in smaller)


@pytest.mark.parametrize(
    "change",
    [
        {"error": "why"}, {"unit": -1}, {"token_counts": (1, 3)}, {"token_counts": (3,)}, {"answer_word": (0,)},
        {"token_positions": (0, 2, 4)}, {"answer_object": (0, 1, 2, 0)},
    ],
    ids=str,
)  # fmt: skip
def test_a_row_that_contradicts_itself_is_refused(change: dict) -> None:
    good = {name: getattr(rows()[0], name) for name in PlanRow.__slots__}
    with pytest.raises(ValueError, match="row of sample 0"):
        PlanRow(**(good | change))


def test_the_arrays_of_both_caches() -> None:
    packing = pack([(2, 3, 9)] * 5, objects_per_unit=4, token_chunk=4, answer_chunk=8)
    arrays = priors_arrays(packing, channels=6, grid=(5, 7), layers=3, width=8, token_chunk=4, answer_chunk=8)
    assert {spec.name: (spec.dtype, spec.unit_shape, spec.slots_per_chunk) for spec in arrays} == {
        "attention": ("float16", (4, 6, 5, 7), 1),
        "attention_mass": ("float32", (4, 6), 1),
        "hidden": ("float16", (8, 3, 8), 4),
        "hidden_scale": ("float32", (8, 3), 4),
        "answer_hidden": ("float16", (24, 8), 8),
        "answer_scale": ("float32", (24,), 8),
    }
    assert image_arrays(channels=256, side=64, images_per_unit=32)[0].unit_shape == (32, 256, 64, 64)
