from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.identity import differing, plain, seal, table_digest, unseal

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_a_sealed_record_comes_back(record: dict) -> None:
    record.pop("sha256", None)
    assert {key: value for key, value in unseal(seal(record)).items() if key != "sha256"} == plain(record)


def test_every_flipped_bit_of_a_sealed_record_is_noticed() -> None:
    data = seal({"unit": 3, "reason": "naïve", "shards": {"a": {"bytes": 12}}, "flag": True})
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError):
            unseal(bytes(flipped))


@given(JSON, JSON)
def test_two_values_differ_exactly_where_their_json_does(one: object, two: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (differing(one, two) == []) == same
    assert differing(one, one) == []


def test_differences_name_the_field_and_both_values() -> None:
    stored = {"lmm": {"weights": "a", "dtype": "bf16"}, "layers": [1, 2], "flag": 1}
    given_ = {"lmm": {"weights": "b", "dtype": "bf16"}, "layers": [1, 3], "flag": True, "new": None}
    assert [(each.field, each.stored, each.given) for each in differing(stored, given_)] == [
        ("flag", "1", "true"),
        ("layers[1]", "2", "3"),
        ("lmm.weights", '"a"', '"b"'),
        ("new", "nothing", "null"),
    ]


def test_a_table_has_one_digest_however_it_is_stored() -> None:
    table = pa.table(
        {
            "n": pa.array([1, 2, 3], pa.int32()),
            "l": pa.array([[1], [], [2, 3]], pa.list_(pa.int32())),
            "s": ["a", None, "c"],
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=1, compression="zstd")
    assert table_digest(pq.read_table(file)) == table_digest(table)
    assert table_digest(pa.concat_tables([table.slice(0, 2), table.slice(2)])) == table_digest(table)


@pytest.mark.parametrize(
    "changed",
    [
        {"n": [1, 2, 4]},
        {"l": [[1], [2], [3]]},
        {"l": [[1, 2], [], [3]]},
        {"s": ["a", "", "c"]},
        {"s": ["a", "c", None]},
    ],
)
def test_a_changed_value_changes_the_digest(changed: dict) -> None:
    columns = {"n": [1, 2, 3], "l": [[1], [], [2, 3]], "s": ["a", None, "c"]}
    assert table_digest(pa.table(columns | changed)) != table_digest(pa.table(columns))
