"""What a cache was made from: canonical JSON, records with their own checksum, and where two identities differ."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SEAL = "sha256"  # the field of a sealed record that holds the checksum of the record with this field blanked
_ABSENT = object()
_SHOWN = 300  # characters of a value in a message; identities hold names and digests, far shorter


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One field in which two nested dicts differ; `field` as in "lmm.weights" or "layers[3]", values as JSON."""

    field: str
    stored: str
    given: str

    def __str__(self) -> str:
        return f"{self.field}: cache has {self.stored}, this run {self.given}"


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8. TypeError or ValueError for anything else."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        errors="backslashreplace"  # half a surrogate, in a path or an error's text
    )


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def plain(value: Any) -> Any:
    """`value` as it comes back from a JSON file: tuples are lists, keys are strings."""
    return json.loads(canonical_json(value))


def seal(record: dict[str, Any]) -> bytes:
    """The bytes of a JSON file that holds `record` and, in `sha256`, its own checksum."""
    record = plain(record | {SEAL: ""})
    return _render(record | {SEAL: digest(record)})


def unseal(data: bytes) -> dict[str, Any]:
    """The record in `data`. Raises ValueError unless these are, to the byte, what `seal` wrote."""
    try:
        record = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict) or SEAL not in record:
        raise ValueError("it carries no checksum")
    if record[SEAL] != digest(record | {SEAL: ""}) or _render(record) != data:
        raise ValueError("its checksum does not match its content")
    return record


def _render(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def differing(stored: Any, given: Any, field: str = "") -> list[Difference]:
    """Every leaf in which two JSON values differ, in order of the field names; [] where they are equal.

    1, 1.0 and true are three different values here, as they are in the file.
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        prefix = f"{field}." if field else ""
        keys = sorted(stored.keys() | given.keys())
        pairs = [(f"{prefix}{key}", stored.get(key, _ABSENT), given.get(key, _ABSENT)) for key in keys]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        pairs = [(f"{field}[{index}]", old, new) for index, (old, new) in enumerate(zip(stored, given, strict=True))]
    else:
        equal = _ABSENT not in (stored, given) and canonical_json(stored) == canonical_json(given)
        return [] if equal else [Difference(field=field, stored=_shown(stored), given=_shown(given))]
    return [difference for name, old, new in pairs for difference in differing(old, new, name)]


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = canonical_json(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… (sha256 {digest(value)[:12]})"


def table_digest(table: pa.Table) -> str:
    """sha256 (hex) of a table's content: names, types and values, whatever file, chunks or pyarrow they came from.

    Columns: integers, floats, bools, strings and lists of integers.
    """
    hasher = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        # of a list only the type of its items: what name they go by differs between a file and memory
        of = column.type.value_type if pa.types.is_list(column.type) else column.type
        hasher.update(canonical_json([name, of != column.type, str(of), len(column), column.null_count]))
        if pa.types.is_list(column.type):
            hasher.update(np.ascontiguousarray(pc.list_value_length(column).to_numpy(zero_copy_only=False)).tobytes())
            hasher.update(np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False)).tobytes())
        elif column.null_count:
            hasher.update(canonical_json(column.to_pylist()))
        elif pa.types.is_string(column.type):
            hasher.update(np.ascontiguousarray(pc.binary_length(column).to_numpy(zero_copy_only=False)).tobytes())
            hasher.update(_joined(column))
        else:
            hasher.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes())
    return hasher.hexdigest()


def _joined(column: pa.Array) -> memoryview:
    """The bytes of all strings of a column without nulls, one after the other; no Python object a string."""
    if not len(column):
        return memoryview(b"")
    _, ends, data = column.buffers()
    of = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1]
    return memoryview(data)[of[0] : of[-1]] if data is not None else memoryview(b"")
