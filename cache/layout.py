"""How a cache lies on disk: the arrays' shapes and shards, and cache.json, the record that says what the cache is.

A unit owns exactly one shard of every array: shard `u` holds slots [u · slots_per_unit, (u + 1) · slots_per_unit).
Inside a shard every chunk is raw little-endian values + crc32c, and so is the index at its end. A derived cache may
have arrays whose chunks are compressed (`codec`); their checksums are over the compressed bytes.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from cache.identity import seal, unseal
from cache.log8 import ATTRIBUTES

FORMAT: Final = "frozen-lmm-grounding cache"
SCHEMA: Final = 3
DTYPES: Final = ("float16", "float32", "int32", "int64", "uint8")
LZ4_LEVEL: Final = 5
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CRC = 4  # bytes of a crc32c
_INDEX_ENTRY = 16  # bytes: offset and length of a chunk inside its shard, uint64 each

Kind = Literal["priors", "images"]
State = Literal["planned", "complete"]
Codec = Literal["raw", "lz4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array of a cache: [units · slots_per_unit, *item_shape]. ValueError for values that can not be laid out."""

    name: str
    """Lower case identifier, also the name of the folder."""
    item_shape: tuple[int, ...]
    """Shape of one slot; () for a number per slot."""
    dtype: str
    """One of DTYPES."""
    slots_per_unit: int
    """Slots of a unit, that is of a shard."""
    slots_per_chunk: int = 1
    """Slots that are read and checked together; divides slots_per_unit."""
    codec: Codec = "raw"
    """lz4: every chunk is compressed by blosc (bits shuffled, lz4), which any Zarr reader undoes."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"array name {self.name!r} is not a lower case identifier")
        if self.dtype not in DTYPES:
            raise ValueError(f"array {self.name}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.codec not in get_args(Codec):
            raise ValueError(f"array {self.name}: codec {self.codec!r} is none of {', '.join(get_args(Codec))}")
        if min(self.slots_per_unit, self.slots_per_chunk, *self.item_shape, 1) < 1:
            raise ValueError(f"array {self.name}: every size must be at least 1: {self}")
        if self.slots_per_unit % self.slots_per_chunk:
            raise ValueError(
                f"array {self.name}: slots_per_unit {self.slots_per_unit} is no multiple of "
                f"slots_per_chunk {self.slots_per_chunk}"
            )

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return (self.slots_per_unit, *self.item_shape)

    @property
    def shard_bytes(self) -> int:
        """Exact size of a shard's file; of a compressed one the size that it would have as it is."""
        chunks = self.slots_per_unit // self.slots_per_chunk
        values = self.slots_per_unit * math.prod(self.item_shape) * np.dtype(self.dtype).itemsize
        return values + chunks * (_CRC + _INDEX_ENTRY) + _CRC

    def shard_key(self, unit: int) -> str:
        """The shard's file inside the array's folder. Dots, not folders: one name to sync instead of one per axis."""
        return ".".join(["c", str(unit), *["0"] * len(self.item_shape)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """cache.json. What must agree for a resume: all but `soft`, `files` and `state`."""

    kind: Kind
    units: int
    identity: dict[str, Any]
    """Whatever makes the content another one: a difference refuses."""
    soft: dict[str, Any]
    """Paths and library versions: a difference warns."""
    arrays: dict[str, ArraySpec]
    files: dict[str, str]
    """sha256 of every metadata file, by its path inside the cache."""
    state: State

    def __post_init__(self) -> None:
        if "cache" in self.identity:
            raise ValueError('an identity can not have a field "cache": that name stands for the layout in `hard`')

    @property
    def group(self) -> str:
        return f"{self.kind}.zarr"

    @property
    def unit_bytes(self) -> int:
        return sum(spec.shard_bytes for spec in self.arrays.values())

    def hard(self) -> dict[str, Any]:
        """All that must be equal for a resume. The identity's fields keep their own names: `lmm.weights`."""
        arrays = {name: _plain_spec(spec) for name, spec in self.arrays.items()}
        return {**self.identity, "cache": {"kind": self.kind, "units": self.units, "arrays": arrays}}

    def to_bytes(self) -> bytes:
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        fields["arrays"] = {name: _plain_spec(spec) for name, spec in self.arrays.items()}
        return seal({"format": FORMAT, "schema": SCHEMA, **fields})

    @classmethod
    def from_bytes(cls, data: bytes) -> Meta:
        """Raises ValueError, in words that follow "cache.json: ", for damage and for another schema."""
        record = unseal(data)
        if (found := (record.get("format"), record.get("schema"))) != (FORMAT, SCHEMA):
            raise ValueError(f"format and schema are {found}, this program reads {(FORMAT, SCHEMA)}")
        arrays = {
            name: ArraySpec(name=name, **(spec | {"item_shape": tuple(spec["item_shape"])}))
            for name, spec in record["arrays"].items()
        }
        return cls(**({name: record[name] for name in cls.__slots__} | {"arrays": arrays}))


def _plain_spec(spec: ArraySpec) -> dict[str, Any]:
    fields = asdict(spec)
    del fields["name"]
    if spec.codec == "raw":
        del fields["codec"]  # as in caches that were made before there was a choice
    return fields | {"item_shape": list(spec.item_shape)}


def zarr_metadata(meta: Meta) -> dict[str, bytes]:
    """The zarr.json of the group and of every array, by path inside the cache."""
    written: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(written), zarr_format=3)
    for spec in meta.arrays.values():
        group.create_array(
            spec.name,
            shape=(meta.units * spec.slots_per_unit, *spec.item_shape),
            dtype=spec.dtype,
            shards=spec.unit_shape,
            chunks=(spec.slots_per_chunk, *spec.item_shape),
            filters=None,
            compressors=(*_compressors(spec), Crc32cCodec()),
            fill_value=0,
            attributes=ATTRIBUTES.get(spec.name),
            chunk_key_encoding={"name": "default", "separator": "."},
        )
    return {f"{meta.group}/{key}": buffer.to_bytes() for key, buffer in written.items()}


def _compressors(spec: ArraySpec) -> list[BloscCodec]:
    """As `cache.shards` compresses."""
    if spec.codec == "raw":
        return []
    size = np.dtype(spec.dtype).itemsize
    return [BloscCodec(cname="lz4", clevel=LZ4_LEVEL, shuffle="bitshuffle", typesize=size, blocksize=0)]
