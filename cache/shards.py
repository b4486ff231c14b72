"""The bytes of a shard, made and read by hand: what zarr-python writes, byte for byte, at the speed of memory.

    values of chunk 0 (little-endian, C order), their crc32c; those of chunk 1; …     4 bytes of crc a chunk
    uint64 offset, uint64 nbytes of every chunk (nbytes with its crc)                 the index
    crc32c of the index

Chunks split the first axis only and nothing is compressed or left out, so every offset is known without the index.
Where the bytes come from is the caller's: a `Fetch` fills buffers (`cache.shard_files` has the one for local files).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import google_crc32c
import numpy as np
from blake3 import blake3

from cache.layout import DTYPES, ArraySpec

_CRC: Final = 4  # bytes of a crc32c
_STORED: Final = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}

Fetch = Callable[[int, Sequence[memoryview]], None]
"""fetch(offset, buffers) fills the buffers, one after the other, with the bytes of the shard from `offset` on."""


class ShardFormatError(ValueError):
    """The bytes are not those of a sound shard of this layout, or not the ones that were committed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A shard that was written, and that its place was seen to hold."""

    bytes: int
    blake3: str
    """Of the whole file, hex."""
    crcs: np.ndarray
    """crc32c of every chunk's values, uint32 [chunks]."""


def encode(spec: ArraySpec, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The shard that holds `values`, [slots_per_unit, *item_shape] of the spec's dtype (ValueError for another).

    -> the buffers (uint8) whose concatenation is the shard, and the chunks' crc32c, uint32 [chunks]. The buffers are
    views of C-contiguous values: do not change those before the buffers are written.
    """
    if values.shape != spec.unit_shape or values.dtype != np.dtype(spec.dtype):
        raise ValueError(
            f"array {spec.name}: a shard holds {spec.dtype} {list(spec.unit_shape)}, "
            f"got {values.dtype} {list(values.shape)}"
        )
    chunks = _bytes_of(np.ascontiguousarray(values, _STORED[spec.dtype])).reshape(chunk_count(spec), -1)
    crcs = np.array([google_crc32c.value(chunk) for chunk in chunks], "<u4")
    buffers = [buffer for pair in zip(chunks, _bytes_of(crcs).reshape(-1, _CRC), strict=True) for buffer in pair]
    return [*buffers, _index(spec)], crcs


def read(
    spec: ArraySpec,
    fetch: Fetch,
    first: int,
    last: int,
    *,
    out: np.ndarray | None = None,
    crcs: np.ndarray | None = None,
    check: bool = True,
) -> np.ndarray:
    """Slots [first, last) of the unit: [last - first, *item_shape], in one fetch of all chunks that they touch.

    out: C-contiguous destination of that shape and the spec's dtype; whole chunks land in it without a copy.
    crcs: uint32 [chunks of the unit] as `encode` gave them: a shard of another run, sound by its own checksums, is
    refused too. check=False: no checksum is computed. After an error the content of `out` is undefined.
    Raises ShardFormatError for damage, ValueError for slots that the unit does not have and for an unsuitable `out`.
    """
    if not 0 <= first <= last <= spec.slots_per_unit:
        raise ValueError(f"array {spec.name}: a unit has {spec.slots_per_unit} slots, not {first} to {last}")
    if out is None:
        out = np.empty((last - first, *spec.item_shape), _STORED[spec.dtype])
    else:
        _check_destination(spec, last - first, out)
    if first == last:
        return out
    per = spec.slots_per_chunk
    low, high = first // per, -(-last // per)
    if high * per - low * per == last - first:
        _read_chunks(spec, fetch, low, high - low, out, crcs, check)
    else:  # a checksum is over a whole chunk
        whole = np.empty(((high - low) * per, *spec.item_shape), out.dtype)
        _read_chunks(spec, fetch, low, high - low, whole, crcs, check)
        out[:] = whole[first - low * per : last - low * per]
    return out


def _read_chunks(
    spec: ArraySpec, fetch: Fetch, first: int, count: int, out: np.ndarray, crcs: np.ndarray | None, check: bool
) -> None:
    """Chunks [first, first + count) to `out`, [count · slots_per_chunk, *item_shape].

    The code is short for the sake of the time: reading a megabyte drives the interpreter out of the CPU's cache.
    """
    chunks = [out] if count == 1 else list(out.reshape(count, -1))
    stored = memoryview(bytearray(_CRC * count))
    buffers = []
    for index, chunk in enumerate(chunks):
        buffers += [chunk.data.cast("B"), stored[_CRC * index : _CRC * (index + 1)]]
    fetch(first * (chunks[0].nbytes + _CRC), buffers)
    if not check:
        return
    for number, (chunk, crc) in enumerate(zip(chunks, buffers[1::2], strict=True), first):
        found = google_crc32c.value(chunk)
        if found != (expected := int.from_bytes(crc, "little")):
            raise ShardFormatError(f"chunk {number} is damaged: its crc32c is {found:08x}, not {expected:08x}")
        if crcs is not None and found != (expected := int(crcs[number])):
            raise ShardFormatError(
                f"chunk {number} is of another run: its crc32c is {found:08x}, {expected:08x} was committed"
            )


def check_index(spec: ArraySpec, fetch: Fetch) -> None:
    """ShardFormatError unless the index and its checksum are exactly those of this layout.

    `read` does not need the index, other readers of Zarr do.
    """
    expected = _index(spec)
    found = np.empty_like(expected)
    fetch(spec.shard_bytes - expected.nbytes, [found.data])
    if not np.array_equal(found, expected):
        byte = int(np.argmax(found != expected))
        what = "checksum" if byte >= expected.nbytes - _CRC else f"entry of chunk {byte // 16}"
        raise ShardFormatError(f"the index is damaged: the {what} is not that of this layout")


def digest(buffers: Sequence[np.ndarray]) -> str:
    """blake3 (hex) of their concatenation: as strong as sha256, and four times as fast (5 GB/s on a core)."""
    hasher = blake3()
    for buffer in buffers:
        hasher.update(buffer.data)
    return hasher.hexdigest()


def copy(spec: ArraySpec, data: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
    """Slots [first, last) of a shard that lies in memory (uint8), to `out`; no checksum is looked at."""
    chunk, per = chunk_bytes(spec), spec.slots_per_chunk
    low, high = first // per, -(-last // per)
    apart, item = chunk + _CRC, _STORED[spec.dtype]
    sizes = [item.itemsize * math.prod(spec.item_shape[axis:]) for axis in range(len(spec.item_shape) + 1)]
    chunks = np.ndarray((high - low, per, *spec.item_shape), item, data, low * apart, (apart, *sizes))
    if per == 1:
        out[:] = chunks[:, 0]
        return
    for number, values in enumerate(chunks, low):
        begin, end = max(first, number * per), min(last, (number + 1) * per)
        out[begin - first : end - first] = values[begin - number * per : end - number * per]


def extent(spec: ArraySpec, first: int, last: int) -> tuple[int, int]:
    """(offset, length) of the bytes that `read` fetches for slots [first, last) of a unit."""
    size, per = chunk_bytes(spec) + _CRC, spec.slots_per_chunk
    chunks = range(first // per, -(-last // per))
    return chunks.start * size, len(chunks) * size


def aligned_empty(shape: Sequence[int], dtype: str | np.dtype, alignment: int = 4096) -> np.ndarray:
    """An uninitialised C-contiguous array that begins on a multiple of `alignment` bytes (a page).

    Reading to an address that is 16 bytes off a page takes up to twice as long.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def chunk_count(spec: ArraySpec) -> int:
    """Chunks of a shard."""
    return spec.slots_per_unit // spec.slots_per_chunk


def chunk_bytes(spec: ArraySpec) -> int:
    """Bytes of a chunk's values, without its crc."""
    return spec.slots_per_chunk * math.prod(spec.item_shape) * np.dtype(spec.dtype).itemsize


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """A C-contiguous array as uint8 [nbytes], a view."""
    return array.reshape(-1).view(np.uint8)


def _index(spec: ArraySpec) -> np.ndarray:
    """The index and its checksum, uint8."""
    length = chunk_bytes(spec) + _CRC
    entries = np.empty((chunk_count(spec), 2), "<u8")
    entries[:, 0] = np.arange(len(entries), dtype=np.uint64) * np.uint64(length)
    entries[:, 1] = length
    crc = np.array([google_crc32c.value(_bytes_of(entries))], "<u4")
    return np.concatenate([_bytes_of(entries), _bytes_of(crc)])


def _check_destination(spec: ArraySpec, slots: int, out: np.ndarray) -> None:
    shape, flags = (slots, *spec.item_shape), out.flags
    if out.shape != shape or out.dtype != _STORED[spec.dtype] or not (flags.c_contiguous and flags.writeable):
        raise ValueError(
            f"array {spec.name}: the destination must be C-contiguous, writable {spec.dtype} {list(shape)}, "
            f"got {out.dtype} {list(out.shape)}"
        )
