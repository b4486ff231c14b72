"""What the LMM itself says to questions, asked before anything is planned, and kept beside the cache.

`CACHE.answers.parquet` holds an answer a row. Questions are asked in units of one batch, in the order of the samples;
a unit is asked again unless all of it is there: a run that was killed ends with the answers of one that was not.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.identity import canonical_json, differing, plain
from cache.places import Place
from manifests.errors import CacheError, IdentityMismatch
from manifests.schema import Reply, Sample
from manifests.table import parquet_writer
from stages.extract.answer_units import BATCH, AnswerUnit, Question
from stages.extract.plan import Images

ALGORITHM: Final = 1  # raised whenever the same questions would get other answers
ENDING: Final = ".answers.parquet"
_INTS: Final = pa.list_(pa.int32())
_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("sample_id", "prompt", "image")]
    + [("ids", _INTS), ("words", _INTS), ("text", pa.string()), ("finished", pa.bool_()), ("error", pa.string())]
)


def is_question(sample: Sample) -> bool:
    """Whether the LMM answers for itself: questions about an object always, captions of conversations unless they are
    what is trained on."""
    asked = sample.task == "reasoning" or (sample.task == "conversation" and sample.split != "train")
    return asked and sample.reply is None and sample.error is None


class Answers:
    """The answers of one run, unit by unit; those that an earlier run has left are taken over."""

    def __init__(self, place: Place, samples: Sequence[Sample], images: Images):
        """place: the cache's.  images: of the samples; who has none that can be read is not asked."""
        self.place = place
        self.identity: dict[str, Any] = {}
        """What `load` was given."""
        digests = images.rows.column("image")
        self.row_of = np.full(len(samples), -1, np.int64)
        """Of each sample the row of its answer, -1 for none."""
        questions: list[Question] = []
        for index, sample in enumerate(samples):
            if is_question(sample) and sample.image_path in images.row_of:
                self.row_of[index] = len(questions)
                questions.append(
                    Question(
                        sample_id=sample.sample_id,
                        prompt=sample.prompt,
                        image=digests[images.row_of[sample.image_path]].as_py(),
                        path=sample.image_path,
                        size=(sample.width, sample.height),
                    )
                )
        batches = range(0, len(questions), BATCH)
        self.units = [AnswerUnit(number=n, questions=tuple(questions[s : s + BATCH])) for n, s in enumerate(batches)]
        self.count = len(questions)
        self._tables: dict[int, pa.Table] = {}

    @property
    def path(self) -> str:
        """What messages call the file."""
        return f"{self.place.name}{ENDING}"

    def missing(self) -> list[AnswerUnit]:
        """Units that are not there, or not whole."""
        return [unit for unit in self.units if unit.number not in self._tables]

    def load(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Take over what the file holds of these questions. identity: `identity_of` this run's answers.

        IdentityMismatch with every differing field where its answers are of other settings, unless `overwrite`: then
        they are forgotten. CacheError for a file that can not be read.
        """
        self.identity = plain(identity)
        try:
            data = self.place.read_beside(ENDING)
        except FileNotFoundError:
            return
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            found = json.loads((file.metadata.metadata or {})[b"answers"])
            table = file.read()
            names, *columns = list(_SCHEMA.names), *(table.column(name) for name in ("sample_id", "prompt", "image"))
            if table.schema.names != names:
                raise ValueError(f"it has the columns {table.schema.names}")
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise CacheError(f"{self.path} can not be read ({error}): delete it, and the LMM answers again") from None
        if differences := differing(found, self.identity):
            if overwrite:
                return
            fields = "; ".join(map(str, differences))
            raise IdentityMismatch(
                f"{self.path} holds answers of other settings: {fields}. Choose another --cache, or pass --overwrite "
                "to have them given anew"
            )
        keys = zip(*(column.to_pylist() for column in columns), strict=True)
        row_of = {key: row for row, key in enumerate(keys)}
        for unit in self.units:
            rows = [row_of.get((each.sample_id, each.prompt, each.image)) for each in unit.questions]
            if None not in rows:
                self._tables[unit.number] = table.take(rows)

    def add(self, report: dict[str, Any]) -> None:
        """What a worker found."""
        self._tables[report["unit"]] = pa.Table.from_pylist(report["rows"], _SCHEMA)

    def save(self) -> None:
        """Write all that is there so far, in the order of the questions."""
        sink = io.BytesIO()
        with parquet_writer(sink, _SCHEMA) as writer:
            writer.add_key_value_metadata({"answers": canonical_json(self.identity).decode()})
            writer.write_table(self._table())
        self.place.write_beside(ENDING, sink.getvalue())

    def tokens(self) -> int:
        """Of all answers that are there."""
        return len(self._table().column("ids").combine_chunks().flatten())

    def given_to(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples with their replies, or with the reason why they have none; CacheError unless all are there."""
        if missing := self.missing():
            raise CacheError(f"{self.path}: {missing[0]} is missing; run the same command again")
        rows = self._table().combine_chunks()

        def answered(sample: Sample, row: int) -> Sample:
            values = rows.slice(row, 1).to_pylist()[0]
            if values["error"] is not None:
                return replace(sample, error=values["error"])
            reply = Reply(
                ids=tuple(values["ids"]),
                words=tuple(values["words"]),
                text=values["text"],
                finished=values["finished"],
            )
            return replace(sample, reply=reply)

        return Answered(samples, self.row_of, answered)

    def supposed(self, samples: Sequence[Sample], most: int) -> Sequence[Sample]:
        """The samples as if every answer had `most` tokens, each a word: the most that they can take."""
        reply = Reply(ids=(0,) * most, words=tuple(range(most)), text="", finished=True)
        return Answered(samples, self.row_of, lambda sample, _row: replace(sample, reply=reply))

    def _table(self) -> pa.Table:
        tables: Iterable[pa.Table] = (self._tables[number] for number in sorted(self._tables))
        return pa.concat_tables([_SCHEMA.empty_table(), *tables])


class Answered(Sequence[Sample]):
    """Samples of which some are given an answer, when they are asked for."""

    def __init__(self, samples: Sequence[Sample], row_of: np.ndarray, answered: Callable[[Sample, int], Sample]):
        self._samples, self._row_of, self._answered = samples, row_of, answered

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        sample, row = self._samples[index], int(self._row_of[index])
        return sample if row < 0 else self._answered(sample, row)


def identity_of(lmm: dict[str, Any], most: int) -> dict[str, Any]:
    """What makes answers what they are, besides the questions. lmm: the LMM's; most: tokens of an answer."""
    return {
        "algorithm": ALGORITHM,
        "lmm": lmm,
        "generation": {"method": "greedy", "batch": BATCH, "max_tokens": most},
    }
