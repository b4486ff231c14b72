"""What the LMM itself says to questions, asked before anything is planned, and kept beside the cache.

`CACHE.answers.parquet` holds an answer a row. Questions are asked in units of one batch, in the order of the samples;
a unit is asked again unless all of it is there: a run that was killed ends with the answers of one that was not. Other
questions' answers stay in the file; whoever asks these again takes them, whatever was in their batch.
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
from manifests.errors import CacheError, DatasetError, IdentityMismatch
from manifests.manifest import Samples
from manifests.schema import Reply, Sample
from manifests.table import parquet_writer
from stages.extract.answer_units import BATCH, AnswerUnit, Question
from stages.extract.plan import Images
from stages.extract.texts import TextToIds, takes_no_image

ALGORITHM: Final = 1  # raised whenever the same questions would get other answers
ENDING: Final = ".answers.parquet"
MANIFEST: Final = "manifest.parquet"
NOTHING: Final = Reply(ids=(), words=(), text="", finished=False)
"""The reply to what could not be asked, or was asked in vain: a miss of its own protocol, and of no other."""
_NOT_ASKED, _UNASKABLE = -1, -2
_KEY: Final = ("sample_id", "prompt", "image")
_INTS: Final = pa.list_(pa.int32())
_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in _KEY]
    + [("ids", _INTS), ("words", _INTS), ("text", pa.string()), ("finished", pa.bool_()), ("error", pa.string())]
)


def is_question(sample: Sample) -> bool:
    """Whether the LMM answers for itself: questions about an object always, captions of conversations unless they are
    what is trained on. One with an error, or without an image, is a question that can not be asked."""
    asked = sample.task == "reasoning" or (sample.task == "conversation" and sample.split != "train")
    return asked and sample.reply is None


class Answers:
    """The answers of one run, unit by unit; those that an earlier run has left are taken over."""

    def __init__(self, place: Place, samples: Sequence[Sample], images: Images):
        """place: the cache's.  images: of the samples; who has none that can be read is not asked."""
        self.place = place
        self.identity: dict[str, Any] = {}
        """What `load` was given."""
        digests = images.rows.column("image")
        self.row_of = np.full(len(samples), _NOT_ASKED, np.int64)
        """Of each sample the row of its answer; -1: it is no question, -2: it can not be asked."""
        questions: list[Question] = []
        for index, sample in enumerate(samples):
            if is_question(sample):
                if sample.error is not None or sample.image_path not in images.row_of:
                    self.row_of[index] = _UNASKABLE
                    continue
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
        self.origin = self.path
        """Where the answers are: the file, or the manifest of the cache that was planned with them."""
        self._tables: dict[int, pa.Table] = {}
        self._found, self._unit_of_found = _SCHEMA.empty_table(), np.zeros(0, np.int64)
        """What the file held, and the unit that asks it again, -1 for none of this run's."""

    @property
    def path(self) -> str:
        """What messages call the file."""
        return f"{self.place.name}{ENDING}"

    @property
    def wanted(self) -> bool:
        """Is there a question, be it one that can not be asked?"""
        return bool((self.row_of != _NOT_ASKED).any())

    def missing(self) -> list[AnswerUnit]:
        """Units that are not there, or not whole."""
        return [unit for unit in self.units if unit.number not in self._tables]

    def load(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Take over what the file holds of these questions; where it is gone, from the cache that was planned with it.

        identity: `identity_of` this run's answers. IdentityMismatch with every differing field where answers are of
        other settings, unless `overwrite`: then they are forgotten. CacheError for a file that can not be read.
        """
        self.identity = plain(identity)
        try:
            data = self.place.read_beside(ENDING)
        except FileNotFoundError:
            if not overwrite:
                self._load_plan()
            return
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            found = json.loads((file.metadata.metadata or {})[b"answers"])
            table = file.read()
            if table.schema.names != _SCHEMA.names:
                raise ValueError(f"it has the columns {table.schema.names}")
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise CacheError(f"{self.path} can not be read ({error}): delete it, and the LMM answers again") from None
        if overwrite and differing(found, self.identity):
            return
        self._require_same(found, self.path)
        row_of = {key: row for row, key in enumerate(zip(*(table.column(n).to_pylist() for n in _KEY), strict=True))}
        self._found, self._unit_of_found = table, np.full(len(table), -1)
        for unit in self.units:
            rows = [row_of.get((each.sample_id, each.prompt, each.image)) for each in unit.questions]
            self._unit_of_found[[row for row in rows if row is not None]] = unit.number
            if None not in rows:
                self._tables[unit.number] = table.take(rows)

    def _load_plan(self) -> None:
        """From the manifest of the cache that is there, if one is. Nothing of it is saved: it does not say whether the
        images are still the same; where one is not, the plan is another one and is refused as such."""
        try:
            samples = Samples(pa.py_buffer(self.place.read(MANIFEST)))
        except (OSError, DatasetError):  # there is none; a damaged one is the cache's to speak of
            return
        if (found := samples.meta.get("answers")) is None:
            return
        self._require_same(found, self.place.path(MANIFEST))
        self.origin = self.place.path(MANIFEST)
        rows = samples.table(["sample_id", "prompt", "reply", "error"])
        rows = rows.filter(rows.column("reply").is_valid())
        keys = zip(rows.column("sample_id").to_pylist(), rows.column("prompt").to_pylist(), strict=True)
        row_of = {key: row for row, key in enumerate(keys)}
        for unit in self.units:
            known = [row_of.get((each.sample_id, each.prompt)) for each in unit.questions]
            if None not in known:
                replies = zip(unit.questions, rows.take(known).to_pylist(), strict=True)
                given = [
                    row["reply"] | {n: getattr(q, n) for n in _KEY} | {"error": row["error"]} for q, row in replies
                ]
                self._tables[unit.number] = pa.Table.from_pylist(given, _SCHEMA)

    def _require_same(self, found: dict[str, Any], name: str) -> None:
        """IdentityMismatch unless the answers of the file called `name` were made as this run's are."""
        if differences := differing(found, self.identity):
            fields = "; ".join(map(str, differences))
            raise IdentityMismatch(
                f"{name} holds answers of other settings: {fields}. Choose another --cache, or pass --overwrite to "
                "have them given anew"
            )

    def add(self, report: dict[str, Any]) -> None:
        """What a worker found."""
        self._tables[report["unit"]] = pa.Table.from_pylist(report["rows"], _SCHEMA)

    def save(self) -> None:
        """Write all that is there so far, in the order of the questions, then what the file held besides."""
        others = self._found.filter(pa.array(~np.isin(self._unit_of_found, list(self._tables))))
        sink = io.BytesIO()
        with parquet_writer(sink, _SCHEMA) as writer:
            writer.add_key_value_metadata({"answers": canonical_json(self.identity).decode()})
            writer.write_table(pa.concat_tables([self._table(), others]))
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
                return replace(sample, reply=NOTHING, error=values["error"])
            reply = Reply(
                ids=tuple(values["ids"]),
                words=tuple(values["words"]),
                text=values["text"],
                finished=values["finished"],
            )
            return replace(sample, reply=reply)

        return Answered(samples, self.row_of, answered)

    def supposed(self, samples: Sequence[Sample], most: int, text: TextToIds) -> Sequence[Sample]:
        """The samples as if every answer had `most` tokens, or as many as the LMM's context leaves room for, each a
        word: the most that they can take."""

        def answered(sample: Sample, _row: int) -> Sample:
            size = (sample.width, sample.height)
            try:
                prompt = text.prompt(sample.prompt, size)
            except DatasetError as error:
                return replace(sample, reply=NOTHING, error=str(error))
            except ValueError as refusal:
                return replace(sample, reply=NOTHING, error=takes_no_image(size, refusal))
            room = most if text.context is None else max(0, min(most, text.context - len(prompt.ids)))
            return replace(sample, reply=Reply(ids=(0,) * room, words=tuple(range(room)), text="", finished=True))

        return Answered(samples, self.row_of, answered)

    def _table(self) -> pa.Table:
        tables: Iterable[pa.Table] = (self._tables[number] for number in sorted(self._tables))
        return pa.concat_tables([_SCHEMA.empty_table(), *tables])


class Answered(Sequence[Sample]):
    """Samples of which some are given an answer, when they are asked for. row_of: of `Answers`."""

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
        if row == _UNASKABLE:
            return replace(sample, reply=NOTHING)
        return sample if row == _NOT_ASKED else self._answered(sample, row)


def identity_of(lmm: dict[str, Any], most: int) -> dict[str, Any]:
    """What makes answers what they are, besides the questions. lmm: the LMM's; most: tokens of an answer."""
    return {
        "algorithm": ALGORITHM,
        "lmm": lmm,
        "generation": {"method": "greedy", "batch": BATCH, "max_tokens": most},
    }
