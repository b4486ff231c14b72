"""The bytes on disk, read by others than us: plain zarr, tensorstore where it is installed, and by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from cache.layout import ArraySpec
from tests.cache.caches import ARRAYS, UNITS, made, root_of, values


def expected(spec: ArraySpec) -> np.ndarray:
    return np.concatenate([values(unit)[spec.name] for unit in range(UNITS)])


@pytest.mark.parametrize("spec", ARRAYS, ids=lambda spec: spec.name)
def test_plain_zarr_reads_it(tmp_path: Path, spec: ArraySpec) -> None:
    root = root_of(made(tmp_path / "cache"))
    array = zarr.open_array(root / "priors.zarr" / spec.name, mode="r")
    np.testing.assert_array_equal(array[:], expected(spec), strict=True)
    group = zarr.open_group(root / "priors.zarr", mode="r")
    assert set(group.array_keys()) == {spec.name for spec in ARRAYS}


@pytest.mark.parametrize("spec", ARRAYS, ids=lambda spec: spec.name)
def test_tensorstore_reads_it(tmp_path: Path, spec: ArraySpec) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    root = root_of(made(tmp_path / "cache"))
    store = {"driver": "file", "path": str(root / "priors.zarr" / spec.name)}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
    np.testing.assert_array_equal(array.read().result(), expected(spec), strict=True)


@pytest.mark.parametrize("spec", ARRAYS, ids=lambda spec: spec.name)
def test_a_shard_is_chunks_with_crc_then_an_index_with_crc(tmp_path: Path, spec: ArraySpec) -> None:
    root = root_of(made(tmp_path / "cache"))
    data = (root / "priors.zarr" / spec.name / spec.shard_key(1)).read_bytes()
    assert len(data) == spec.shard_bytes
    chunks = spec.slots_per_unit // spec.slots_per_chunk
    index, crc = data[-16 * chunks - 4 : -4], struct.unpack("<I", data[-4:])[0]
    assert google_crc32c.value(index) == crc
    slots, end = [], 0
    for offset, length in np.frombuffer(index, "<u8").reshape(chunks, 2).tolist():  # no entry is "absent": 2^64 - 1
        chunk = data[offset : offset + length]
        assert google_crc32c.value(chunk[:-4]) == struct.unpack("<I", chunk[-4:])[0]
        slots.append(np.frombuffer(chunk[:-4], np.dtype(spec.dtype).newbyteorder("<")))
        end = max(end, offset + length)
    assert end == len(data) - 16 * chunks - 4
    found = np.concatenate(slots).reshape(spec.unit_shape)
    np.testing.assert_array_equal(found, values(1)[spec.name])


@pytest.mark.parametrize(
    "change",
    [{"slots_per_chunk": 4}, {"dtype": "float8"}, {"name": "../x"}, {"item_shape": (0,)}, {"slots_per_unit": 0}],
    ids=str,
)
def test_a_layout_that_can_not_be_is_refused(change: dict) -> None:
    settings = {"name": "a", "item_shape": (2,), "dtype": "float16", "slots_per_unit": 6, "slots_per_chunk": 3}
    ArraySpec(**settings)
    with pytest.raises(ValueError, match=r"array"):
        ArraySpec(**(settings | change))
