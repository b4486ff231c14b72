"""Where two metadata files differ: the same table in other bytes is no difference."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from cache.identity import Difference, differing


def file_differences(name: str, stored: bytes, given: bytes) -> list[Difference]:
    """Two Parquet files of unequal bytes may still be the same table, written by two versions of pyarrow."""
    field = f"files.{name}"
    try:
        old, new = pq.read_table(io.BytesIO(stored)), pq.read_table(io.BytesIO(given))
    except pa.ArrowException:
        shas = [hashlib.sha256(data).hexdigest() for data in (stored, given)]
        return [Difference(field=field, stored=f"sha256 {shas[0]}", given=f"sha256 {shas[1]}")]
    if not old.schema.equals(new.schema):
        texts = [f"columns {', '.join(table.schema.names)}" for table in (old, new)]
        return [Difference(field=field, stored=texts[0], given=texts[1])]
    if len(old) != len(new):
        texts = [f"{len(table)} rows" for table in (old, new)]
        return [Difference(field=field, stored=texts[0], given=texts[1])]
    for column in (column for column in old.schema.names if not old.column(column).equals(new.column(column))):
        for row, (before, after) in enumerate(zip(old.column(column), new.column(column), strict=True)):
            if before != after:  # the first one says enough
                return differing(before.as_py(), after.as_py(), f"{field}.{column}[{row}]")
    return []
