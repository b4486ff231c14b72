"""A shard's bytes against zarr-python (byte for byte), tensorstore and plain numpy slicing; damage of every kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from cache import shards
from cache.layout import ArraySpec

SPECS = [
    ArraySpec(name="maps", item_shape=(3, 4, 5), dtype="float16", slots_per_unit=6),
    ArraySpec(name="numbers", item_shape=(), dtype="float32", slots_per_unit=8, slots_per_chunk=4),
    ArraySpec(name="one_chunk", item_shape=(7,), dtype="int64", slots_per_unit=5, slots_per_chunk=5),
    ArraySpec(name="bytes", item_shape=(3,), dtype="uint8", slots_per_unit=9, slots_per_chunk=3),
    ArraySpec(name="one_slot", item_shape=(2, 2), dtype="int32", slots_per_unit=1),
    ArraySpec(name="many", item_shape=(2,), dtype="float16", slots_per_unit=1500),
    ArraySpec(name="packed", item_shape=(40, 5), dtype="float16", slots_per_unit=6, slots_per_chunk=2, codec="lz4"),
    ArraySpec(name="packed_bytes", item_shape=(3,), dtype="uint8", slots_per_unit=4, codec="lz4"),
]
SMALL = SPECS[1]
by_name = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def values_of(spec: ArraySpec, seed: int = 0) -> np.ndarray:
    """Random values; the first chunk is all zeros, which zarr leaves out unless it is told not to."""
    values = np.random.default_rng(seed).integers(1, 100, spec.unit_shape).astype(spec.dtype)
    values[: spec.slots_per_chunk] = 0
    return values


def bytes_of(spec: ArraySpec, values: np.ndarray) -> bytearray:
    return bytearray(b"".join(shards.encode(spec, values)[0]))


def fetch_from(data: bytes | bytearray) -> shards.Fetch:
    def fetch(offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = data[offset : offset + buffer.nbytes]
            offset += buffer.nbytes

    return fetch


def array_at(folder: Path, spec: ArraySpec, units: int) -> zarr.Array:
    return zarr.create_array(
        LocalStore(folder), shape=(units * spec.slots_per_unit, *spec.item_shape), dtype=spec.dtype,
        shards=spec.unit_shape, chunks=(spec.slots_per_chunk, *spec.item_shape), filters=None,
        compressors=(*[BloscCodec(cname="lz4", shuffle="bitshuffle")] * (spec.codec == "lz4"), Crc32cCodec()),
        fill_value=0, config={"write_empty_chunks": True},
        chunk_key_encoding={"name": "default", "separator": "."},
    )  # fmt: skip


@by_name
def test_the_bytes_are_those_of_zarr(tmp_path: Path, spec: ArraySpec) -> None:
    values = [values_of(spec), np.zeros(spec.unit_shape, spec.dtype)]
    array_at(tmp_path, spec, 2)[:] = np.concatenate(values)
    for unit in range(2):
        encoded = bytes_of(spec, values[unit])
        assert encoded == (tmp_path / spec.shard_key(unit)).read_bytes()
        assert spec.codec == "lz4" or len(encoded) == spec.shard_bytes


@by_name
def test_zarr_and_tensorstore_read_them(tmp_path: Path, spec: ArraySpec) -> None:
    values = [values_of(spec), values_of(spec, 1)]
    array = array_at(tmp_path / "a", spec, 2)
    for unit in range(2):
        (tmp_path / "a" / spec.shard_key(unit)).write_bytes(bytes_of(spec, values[unit]))
    np.testing.assert_array_equal(array[:], np.concatenate(values), strict=True)
    pytest.importorskip("tensorstore")
    subprocess.run([sys.executable, "-c", _TENSORSTORE, tmp_path / "a", tmp_path / "found.npy"], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), np.concatenate(values), strict=True)


_TENSORSTORE = """
import sys, numpy, tensorstore
store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": sys.argv[1]}}
numpy.save(sys.argv[2], tensorstore.open(store).result().read().result())
"""  # a process of its own: it does not survive the forks of other tests


@st.composite
def ranges(draw: st.DrawFn) -> tuple[ArraySpec, int, int]:
    chunk = draw(st.integers(1, 4))
    spec = ArraySpec(
        name="a", item_shape=tuple(draw(st.lists(st.integers(1, 3), max_size=3))), slots_per_chunk=chunk,
        dtype=draw(st.sampled_from(["float16", "float32", "int64", "uint8"])),
        slots_per_unit=chunk * draw(st.integers(1, 5)), codec=draw(st.sampled_from(["raw", "lz4"])),
    )  # fmt: skip
    first = draw(st.integers(0, spec.slots_per_unit))
    return spec, first, draw(st.integers(first, spec.slots_per_unit))


@settings(max_examples=200, deadline=None)
@given(ranges(), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_reading_is_slicing(case: tuple, seed: int, into: bool, committed: bool, check: bool) -> None:
    spec, first, last = case
    values = values_of(spec, seed)
    buffers, crcs = shards.encode(spec, values)
    size = sum(each.nbytes for each in buffers)
    options: dict[str, Any] = {"check": check, "crcs": crcs if committed else None, "size": size}
    if into:
        options["out"] = shards.aligned_empty((last - first, *spec.item_shape), spec.dtype)
    found = shards.read(spec, fetch_from(b"".join(buffers)), first, last, **options)
    np.testing.assert_array_equal(found, values[first:last], strict=True)
    assert found.flags.writeable and (not into or found is options["out"])


def test_whole_chunks_land_in_the_destination_without_a_copy() -> None:
    values, out = values_of(SMALL), np.zeros(4, "float32")
    asked: list[tuple[int, list[int]]] = []
    inside: list[bool] = []

    def fetch(offset: int, buffers: Sequence[memoryview]) -> None:
        asked.append((offset, [buffer.nbytes for buffer in buffers]))
        inside.extend(np.may_share_memory(out, np.frombuffer(buffer, np.uint8)) for buffer in buffers)
        fetch_from(bytes_of(SMALL, values))(offset, buffers)

    shards.read(SMALL, fetch, 4, 8, out=out)
    assert asked == [(20, [16, 4])]
    assert inside == [True, False]
    np.testing.assert_array_equal(out, values[4:8])


@pytest.mark.parametrize("spec", [SMALL, SPECS[3], SPECS[-1]], ids=lambda spec: spec.name)
def test_every_flipped_bit_is_found(spec: ArraySpec) -> None:
    data = bytes_of(spec, values_of(spec))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(shards.ShardFormatError, match=r"chunk|index"):
            shards.check_index(spec, fetch_from(data), len(data))
            shards.read(spec, fetch_from(data), 0, spec.slots_per_unit, size=len(data))
        data[bit // 8] ^= 1 << bit % 8
    shards.check_index(spec, fetch_from(data), len(data))


def test_the_index_of_a_compressed_shard_leads_nowhere_else() -> None:
    """Sound by its own checksum, it would still let chunks overlap, or lie outside."""
    spec = SPECS[-1]
    data = bytes_of(spec, values_of(spec))
    index = len(data) - 16 * 4 - 4
    entries = np.frombuffer(bytes(data[index:-4]), "<u8").reshape(4, 2)
    for changes in ({(1, 0): 0}, {(0, 1): 1 << 60}, {(0, 1): 4}, {(3, 0): len(data)}, {(0, 1): 2**64 - 1}):
        changed = entries.copy()
        for place, value in changes.items():
            changed[place] = value
        data[index:-4] = changed.tobytes()
        data[-4:] = google_crc32c.value(bytes(data[index:-4])).to_bytes(4, "little")
        with pytest.raises(shards.ShardFormatError, match="the index is damaged"):
            shards.read(spec, fetch_from(data), 0, 1, size=len(data))
    with pytest.raises(shards.ShardFormatError, match="the shard has 3 bytes"):
        shards.read(spec, fetch_from(data), 0, 1, size=3)
    with pytest.raises(ValueError, match="size of its shard"):
        shards.read(spec, fetch_from(data), 0, 1)


@pytest.mark.parametrize("garbage", [b"", b"\x02\x01\x95\x01" + bytes(36), bytes(range(40))])
def test_a_compressed_chunk_that_is_sound_and_still_no_values(garbage: bytes) -> None:
    spec = replace(SPECS[-1], slots_per_unit=1)
    packed = garbage.ljust(16, b"\0")
    crc = google_crc32c.value(packed).to_bytes(4, "little")
    entry = np.array([0, len(packed) + 4], "<u8").tobytes()
    data = packed + crc + entry + google_crc32c.value(entry).to_bytes(4, "little")
    with pytest.raises(shards.ShardFormatError, match="chunk 0 is damaged"):
        shards.read(spec, fetch_from(data), 0, 1, size=len(data), check=False)


def test_damage_outside_of_a_partly_wanted_chunk_is_found_inside_another_is_not() -> None:
    data = bytes_of(SMALL, values_of(SMALL))
    data[0] ^= 1
    with pytest.raises(shards.ShardFormatError, match="chunk 0 is damaged"):
        shards.read(SMALL, fetch_from(data), 3, 4)
    np.testing.assert_array_equal(shards.read(SMALL, fetch_from(data), 4, 8), values_of(SMALL)[4:])
    assert shards.read(SMALL, fetch_from(data), 3, 4, check=False).shape == (1,)


def test_a_sound_shard_of_another_run_is_refused() -> None:
    _, crcs = shards.encode(SMALL, values_of(SMALL))
    other = bytes_of(SMALL, values_of(SMALL, 1))
    assert shards.read(SMALL, fetch_from(other), 4, 8).shape == (4,)
    with pytest.raises(shards.ShardFormatError, match="chunk 1 is of another run"):
        shards.read(SMALL, fetch_from(other), 4, 8, crcs=crcs)


def test_what_does_not_fit_is_refused() -> None:
    values, fetch = values_of(SMALL), fetch_from(bytes_of(SMALL, values_of(SMALL)))
    for wrong in (values[:4], values.astype("float64")):
        with pytest.raises(ValueError, match="array numbers: a shard holds float32"):
            shards.encode(SMALL, wrong)
    for first, last in ((-1, 2), (3, 2), (7, 9)):
        with pytest.raises(ValueError, match="8 slots"):
            shards.read(SMALL, fetch, first, last)
    for out in (np.empty(3, "float32"), np.empty(4, "float64"), np.empty(8, "float32")[::2]):
        with pytest.raises(ValueError, match="destination"):
            shards.read(SMALL, fetch, 0, 4, out=out)


def test_values_in_another_order_are_encoded_as_c_order() -> None:
    spec = SPECS[0]
    values = values_of(spec)
    assert bytes_of(spec, np.asfortranarray(values)) == bytes_of(spec, values)
    big = values.astype(values.dtype.newbyteorder(">"))
    with pytest.raises(ValueError, match="holds float16"):
        shards.encode(spec, big)


@pytest.mark.parametrize("shape", [(5,), (3, 7), ()])
def test_aligned_memory_begins_on_a_page(shape: tuple[int, ...]) -> None:
    array = shards.aligned_empty(shape, "float16")
    assert array.ctypes.data % 4096 == 0 and array.shape == shape and array.flags.c_contiguous
