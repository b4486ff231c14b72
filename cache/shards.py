"""The bytes of a shard, made and read by hand: what zarr-python writes, byte for byte, at the speed of memory.

    values of chunk 0 (little-endian, C order), their crc32c; those of chunk 1; …     4 bytes of crc a chunk
    uint64 offset, uint64 nbytes of every chunk (nbytes with its crc)                 the index
    crc32c of the index

Chunks split the first axis only and none is left out; where nothing is compressed, every offset is known without the
index. A compressed chunk is what blosc makes of its values, its crc32c is of that, and the index says where it lies.
Where the bytes come from is the caller's: a `Fetch` fills buffers (`cache.shard_files` has the one for local files).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from blake3 import blake3
from numcodecs import blosc

from cache.layout import DTYPES, LZ4_LEVEL, ArraySpec

_CRC: Final = 4  # bytes of a crc32c
_ENTRY: Final = 16  # bytes of a chunk's entry in the index
_BLOSC: Final = 16  # bytes of a compressed chunk's header
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
    raw = _bytes_of(np.ascontiguousarray(values, _STORED[spec.dtype])).reshape(chunk_count(spec), -1)
    chunks = list(raw) if spec.codec == "raw" else [_compressed(spec, chunk) for chunk in raw]
    crcs = np.array([google_crc32c.value(chunk) for chunk in chunks], "<u4")
    buffers = [buffer for pair in zip(chunks, _bytes_of(crcs).reshape(-1, _CRC), strict=True) for buffer in pair]
    return [*buffers, _index([chunk.nbytes for chunk in chunks])], crcs


def read(
    spec: ArraySpec,
    fetch: Fetch,
    first: int,
    last: int,
    *,
    out: np.ndarray | None = None,
    crcs: np.ndarray | None = None,
    check: bool = True,
    size: int | None = None,
) -> np.ndarray:
    """Slots [first, last) of the unit: [last - first, *item_shape], in one fetch of all chunks that they touch.

    out: C-contiguous destination of that shape and the spec's dtype; whole chunks land in it without a copy.
    crcs: uint32 [chunks of the unit] as `encode` gave them: a shard of another run, sound by its own checksums, is
    refused too. check=False: no checksum is computed. After an error the content of `out` is undefined.
    size: bytes of the whole shard, needed for a compressed one: its index is fetched first, and check=False is of no
    effect, for damaged bytes are not safe to decompress.
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
    whole = out
    if high * per - low * per != last - first:  # a checksum is over a whole chunk
        whole = np.empty(((high - low) * per, *spec.item_shape), out.dtype)
    if spec.codec == "raw":
        _read_chunks(spec, fetch, low, high - low, whole, crcs, check)
    else:
        _read_compressed(spec, fetch, low, high - low, whole, crcs, size)
    if whole is not out:
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
    if check:
        _check_chunks(first, chunks, buffers[1::2], crcs)


def _check_chunks(first: int, chunks: Sequence[Any], stored: Sequence[memoryview], crcs: np.ndarray | None) -> None:
    for number, (chunk, crc) in enumerate(zip(chunks, stored, strict=True), first):
        found = google_crc32c.value(chunk)
        if found != (expected := int.from_bytes(crc, "little")):
            raise ShardFormatError(f"chunk {number} is damaged: its crc32c is {found:08x}, not {expected:08x}")
        if crcs is not None and found != (expected := int(crcs[number])):
            raise ShardFormatError(
                f"chunk {number} is of another run: its crc32c is {found:08x}, {expected:08x} was committed"
            )


def _read_compressed(
    spec: ArraySpec, fetch: Fetch, first: int, count: int, out: np.ndarray, crcs: np.ndarray | None, size: int | None
) -> None:
    """As `_read_chunks`, of compressed chunks."""
    if size is None:
        raise ValueError(f"array {spec.name} is compressed: the size of its shard is needed")
    lengths = _lengths(spec, fetch, size)
    ends = np.cumsum(lengths[first : first + count])
    data = np.empty(ends[-1], np.uint8)
    fetch(sum(lengths[:first]), [data.data])
    parts = np.split(data, ends[:-1])
    _check_chunks(first, [part[:-_CRC] for part in parts], [part[-_CRC:].data for part in parts], crcs)
    for number, (part, chunk) in enumerate(zip(parts, out.reshape(count, -1), strict=True), first):
        packed = part[:-_CRC]
        raw, _, stored = np.frombuffer(packed, "<u4", 3, offset=4).tolist()  # of blosc's header
        if (raw, stored) != (chunk.nbytes, packed.nbytes):
            raise ShardFormatError(f"chunk {number} is damaged: it does not hold {chunk.nbytes} bytes of values")
        try:
            blosc.decompress(packed, chunk.data.cast("B"))
        except (RuntimeError, ValueError) as error:
            raise ShardFormatError(f"chunk {number} is damaged: it can not be decompressed ({error})") from None


def _lengths(spec: ArraySpec, fetch: Fetch, size: int) -> list[int]:
    """Bytes of every chunk of a compressed shard, crc included. ShardFormatError unless they fill it exactly."""
    found = np.empty(_ENTRY * chunk_count(spec) + _CRC, np.uint8)
    if size < found.nbytes:
        raise ShardFormatError(f"the index is damaged: the shard has {size} bytes")
    fetch(size - found.nbytes, [found.data])
    if google_crc32c.value(found[:-_CRC]) != int.from_bytes(found[-_CRC:].data, "little"):
        raise ShardFormatError("the index is damaged: its checksum is not that of its content")
    lengths = found[:-_CRC].view("<u8")[1::2].tolist()
    gapless = min(lengths) >= _BLOSC + _CRC and sum(lengths) == size - found.nbytes
    if not gapless or not np.array_equal(_index([length - _CRC for length in lengths]), found):
        raise ShardFormatError("the index is damaged: the chunks that it tells of do not fill the shard")
    return lengths


def check_index(spec: ArraySpec, fetch: Fetch, size: int | None = None) -> None:
    """ShardFormatError unless the index and its checksum are exactly those of this layout. size: as for `read`.

    `read` does not need the index where nothing is compressed, other readers of Zarr do.
    """
    if spec.codec != "raw":
        _lengths(spec, fetch, size or 0)
        return
    expected = _index([chunk_bytes(spec)] * chunk_count(spec))
    found = np.empty_like(expected)
    fetch(spec.shard_bytes - expected.nbytes, [found.data])
    if not np.array_equal(found, expected):
        byte = int(np.argmax(found != expected))
        what = "checksum" if byte >= expected.nbytes - _CRC else f"entry of chunk {byte // _ENTRY}"
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


def from_memory(data: np.ndarray) -> Fetch:
    """The `Fetch` of a shard that is in memory, uint8."""

    def fetch(offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = data.data[offset : offset + buffer.nbytes]
            offset += buffer.nbytes

    return fetch


def extent(spec: ArraySpec, first: int, last: int) -> tuple[int, int]:
    """(offset, length) of the bytes that `read` fetches for slots [first, last) of a unit that is not compressed."""
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


def _compressed(spec: ArraySpec, chunk: np.ndarray) -> np.ndarray:
    """uint8 [n] -> what blosc makes of it, uint8."""
    size = np.dtype(spec.dtype).itemsize
    packed = blosc.compress(chunk, b"lz4", LZ4_LEVEL, blosc.BITSHUFFLE, blosc.AUTOBLOCKS, typesize=size)
    return np.frombuffer(packed, np.uint8)


def _index(lengths: Sequence[int]) -> np.ndarray:
    """The index of chunks of so many bytes, without their crcs, and its checksum: uint8."""
    entries = np.empty((len(lengths), 2), "<u8")
    entries[:, 1] = np.asarray(lengths, np.uint64) + np.uint64(_CRC)
    entries[:, 0] = np.cumsum(entries[:, 1]) - entries[:, 1]
    crc = np.array([google_crc32c.value(_bytes_of(entries))], "<u4")
    return np.concatenate([_bytes_of(entries), _bytes_of(crc)])


def _check_destination(spec: ArraySpec, slots: int, out: np.ndarray) -> None:
    shape, flags = (slots, *spec.item_shape), out.flags
    if out.shape != shape or out.dtype != _STORED[spec.dtype] or not (flags.c_contiguous and flags.writeable):
        raise ValueError(
            f"array {spec.name}: the destination must be C-contiguous, writable {spec.dtype} {list(shape)}, "
            f"got {out.dtype} {list(out.shape)}"
        )
