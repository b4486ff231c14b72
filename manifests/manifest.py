"""The manifest: the samples of a run in one Parquet file, a row each.

    write_manifest("manifest.parquet", samples, {"dataset": "refcoco"})
    samples = Samples("manifest.parquet")     # a sequence; a sample is decoded when it is asked for
    samples.where(split=["val"]), samples.meta

It holds all that training and evaluation need besides the priors, masks included, and is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import DatasetError
from manifests.schema import Object, Piece, Reply, Sample, Task
from manifests.table import GROUP, MEMORY, LazyTable, Source, write_records

MANIFEST_VERSION: Final = 3

_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_PIECE = pa.struct([("text", pa.string()), ("object", pa.int32())])
_OBJECT = pa.struct(
    [
        ("object_id", pa.string()),
        ("mask", _MASK),
        ("is_thing", pa.bool_()),
        ("plural", pa.bool_()),
        ("category", pa.string()),
        ("phrase", pa.string()),
        ("ignore", _MASK),
    ]
)
_REPLY = pa.struct(
    [("ids", pa.list_(pa.int32())), ("words", pa.list_(pa.int32())), ("text", pa.string()), ("finished", pa.bool_())]
)
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("sample_id", "dataset", "split", "task", "image_id", "image_path")]
    + [("height", pa.int32()), ("width", pa.int32()), ("prompt", pa.string())]
    + [("pieces", pa.list_(_PIECE)), ("objects", pa.list_(_OBJECT)), ("group", pa.string())]
    + [("reply", _REPLY), ("error", pa.string())]
)


def _columns_of(version: int) -> list[str]:
    """Version 2 had no groups, replies and ignored pixels: its samples have none."""
    return [name for name in _SCHEMA.names if version > 2 or name not in ("group", "reply")]


class Samples(LazyTable[Sample]):
    """The samples of a manifest, in order.

    What selects samples (split, task, dataset) is kept as a byte a sample from its first use on.
    Raises DatasetError where the file is missing, damaged, or not a manifest of this version.
    """

    what, cure = "the manifest", "build it again (run_pipeline.py manifest build)"

    def __init__(self, source: Source, memory_bytes: int = MEMORY) -> None:
        super().__init__(source, memory_bytes)
        try:
            header = json.loads((self._file.metadata.metadata or {})[b"manifest"])
        except (KeyError, ValueError):
            raise DatasetError(f"{self.name} is not a manifest: {self.cure}") from None
        names = self._file.schema_arrow.names
        if header["version"] not in (2, MANIFEST_VERSION) or names != _columns_of(header["version"]):
            raise DatasetError(
                f"{self.name} is a manifest of version {header['version']}, this program reads {MANIFEST_VERSION}: "
                f"{self.cure}"
            )
        self.meta: dict[str, Any] = header["meta"]
        """What `write_manifest` was given."""
        self._labels: dict[str, tuple[np.ndarray, list[str]]] = {}
        self._searched: np.ndarray | None = None

    def where(self, **labels: Collection[str]) -> list[int]:
        """Indices, in order, of the samples with one of these labels: where(split=["val"], task=["referring"])."""
        wanted = np.ones(len(self), bool)
        for name, chosen in labels.items():
            codes, known = self.codes(name), self.labels(name)
            wanted &= np.array([label in chosen for label in known], bool)[codes] if known else False
        return np.flatnonzero(wanted).tolist()

    def searched(self) -> np.ndarray:
        """bool [samples]: whose slots are the words of a reply, and no objects that masks belong to."""
        if self._searched is None:
            if "reply" not in self._file.schema_arrow.names:
                self._searched = np.zeros(len(self), bool)
                return self._searched
            replied = np.asarray(self.table(["reply.finished"]).column("reply").combine_chunks().is_valid())
            names = self.labels("task")
            self._searched = replied & np.array([name == "conversation" for name in names], bool)[self.codes("task")]
        return self._searched

    def labels(self, name: str) -> list[str]:
        """The different splits (tasks, datasets), in the order of their first sample."""
        return list(self._coded(name)[1])

    def codes(self, name: str) -> np.ndarray:
        """For every sample the number of its label in `labels`, in the smallest integers that do."""
        return self._coded(name)[0]

    def ids(self) -> Iterator[str]:
        """The sample_id of every sample, in order."""
        return (value.as_py() for value in self.column("sample_id"))

    def digest(self) -> str:
        """sha256 (hex) of the samples without what an LMM replied to them; of one pyarrow version."""
        digest, replied = hashlib.sha256(), ("reply", "error")
        names = [name for name in self._file.schema_arrow.names if name not in replied]
        for batch in self._file.iter_batches(batch_size=GROUP, columns=names, use_threads=False):
            digest.update(batch.serialize())
        return digest.hexdigest()

    def _coded(self, name: str) -> tuple[np.ndarray, list[str]]:
        if name not in self._labels:
            coded = pc.dictionary_encode(self.column(name))
            known = coded.dictionary.to_pylist()
            codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.min_scalar_type(len(known)))
            self._labels[name] = codes, known
        return self._labels[name]

    def _decode(self, record: dict[str, Any]) -> Sample:
        if record["task"] not in get_args(Task):
            raise DatasetError(
                f"sample {record['sample_id']}: task {record['task']!r} is none of {', '.join(get_args(Task))}"
            )
        record["pieces"] = tuple(Piece(**piece) for piece in record["pieces"])
        record["objects"] = tuple(Object(**item) for item in record["objects"])
        if (reply := record.get("reply")) is not None:
            record["reply"] = Reply(**reply | {name: tuple(reply[name]) for name in ("ids", "words")})
        return Sample(**record)


def write_manifest(path: str | os.PathLike[str], samples: Iterable[Sample], meta: Mapping[str, Any]) -> None:
    """Write samples, in order, and `meta` (JSON values) as Parquet: under a temporary name, then renamed.

    The same samples and meta give the same bytes (of one pyarrow version). Raises DatasetError for a sample_id that
    occurs twice and for text that is not Unicode.
    """
    path = Path(path)
    header = json.dumps({"version": MANIFEST_VERSION, "meta": dict(meta)}, sort_keys=True, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write_records(file, _SCHEMA, _records(path, samples), {"manifest": header})
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except (UnicodeEncodeError, pa.ArrowException) as error:
        raise DatasetError(f"{path} can not be written: a sample holds a value outside the schema ({error})") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def is_manifest(path: Path) -> bool:
    """Is this file a manifest, of whatever version?"""
    try:
        return b"manifest" in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _records(path: Path, samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """Every sample's columns; DatasetError for a second sample of one id."""
    seen: set[str] = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise DatasetError(f"{path}: two samples are called {sample.sample_id}; sample ids must be unique")
        seen.add(sample.sample_id)
        record = {name: getattr(sample, name) for name in _SCHEMA.names}
        record["pieces"] = [{"text": piece.text, "object": piece.object} for piece in sample.pieces]
        record["reply"] = None if sample.reply is None else asdict(sample.reply)
        record["objects"] = [{field.name: getattr(item, field.name) for field in _OBJECT} for item in sample.objects]
        yield record
