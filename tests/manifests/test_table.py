"""A table is read where it is asked: not when it is opened, within its memory, from any thread, and never damaged."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import DatasetError
from manifests.manifest import Samples, write_manifest
from manifests.schema import Sample
from manifests.table import GROUP
from tests.manifests.test_schema import sample

SPLITS = ("val", "train", "testA")
COUNT = 2 * GROUP + 100


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    tasks = ("referring", "narrative")
    return [
        replace(sample(), sample_id=f"s{i}", split=SPLITS[i % 3], task=tasks[i // 3 % 2], prompt="?" * (i % 7))
        for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    path = tmp_path_factory.mktemp("table") / "m"
    write_manifest(path, iter(samples), {"made": "for this"})
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were read since."""
    found: list[int] = []
    read: Callable[[Samples, int], pa.RecordBatch] = Samples._read

    def counted(self: Samples, number: int) -> pa.RecordBatch:
        found.append(number)
        return read(self, number)

    monkeypatch.setattr(Samples, "_read", counted)
    return found


def test_rows_by_index_slice_and_in_order(path: Path, samples: list[Sample]) -> None:
    found = Samples(path)
    assert pq.ParquetFile(path).num_row_groups == 3 and len(found) == COUNT
    for index in (0, GROUP - 1, GROUP, COUNT - 1, -1, -COUNT):
        assert found[index] == samples[index]
    assert found[GROUP - 2 : GROUP + 3] == samples[GROUP - 2 : GROUP + 3] and found[::-500] == samples[::-500]
    assert list(found) == samples
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match=f"has {COUNT} rows, there is no row {index}"):
            found[index]


def test_selecting_reads_no_row(path: Path, samples: list[Sample], reads: list[int]) -> None:
    found = Samples(path)
    assert found.labels("split") == list(SPLITS) and found.labels("dataset") == ["refcoco"]
    assert found.where(split=["val"]) == [i for i, s in enumerate(samples) if s.split == "val"]
    expected = [i for i, s in enumerate(samples) if s.split != "val" and s.task == "narrative"]
    assert found.where(split={"train", "testA"}, task=["narrative"]) == expected
    assert found.where(split=["none"]) == [] and found.where() == list(range(COUNT))
    assert list(found.ids()) == [s.sample_id for s in samples] and found.meta == {"made": "for this"}
    assert found.codes("split").nbytes == COUNT and reads == []


def test_a_group_is_read_once_while_there_is_memory(path: Path, reads: list[int]) -> None:
    found = Samples(path)
    order = random.Random(0).sample(range(COUNT), COUNT)
    first = {index: found[index] for index in order}
    assert sorted(reads) == [0, 1, 2]
    assert all(found[index] is first[index] for index in order)


def test_the_group_used_longest_ago_makes_room(path: Path, samples: list[Sample], reads: list[int]) -> None:
    one = Samples(path)
    _ = one[0]
    memory = int(2.1 * one.used)  # for two groups
    found = Samples(path, memory_bytes=memory)
    reads.clear()
    for index in (0, GROUP, 1, 2 * GROUP, 2, GROUP + 1):  # groups 0 1 0 2 0 1
        assert found[index] == samples[index] and found.used <= memory
    assert reads == [0, 1, 2, 1]
    tiny = Samples(path, memory_bytes=0)
    assert [tiny[index] for index in (0, GROUP, 1)] == [samples[index] for index in (0, GROUP, 1)]
    assert 0 < tiny.used <= one.used  # the last one stays, or a batch would read it again for every sample


def test_threads_share_a_table(path: Path, samples: list[Sample]) -> None:
    found = Samples(path, memory_bytes=0)

    def look(seed: int) -> bool:
        choose = random.Random(seed)
        return all(found[i] == samples[i] for i in (choose.randrange(COUNT) for _ in range(60)))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(look, range(8)))


def test_a_table_can_be_pickled_and_be_in_memory(path: Path, samples: list[Sample]) -> None:
    buffer = pa.py_buffer(path.read_bytes())
    for source in (path, str(path), buffer):
        found = Samples(source, memory_bytes=7)
        _ = found[0]
        data = pickle.dumps(found)
        again = pickle.loads(data)
        assert again[COUNT - 1] == samples[-1] and again.memory_bytes == 7
        assert source is buffer or len(data) < 500


def test_the_same_rows_give_the_same_bytes_whatever_they_come_from(path: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "again", Samples(path), {"made": "for this"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_flipped_bit_in_a_page_is_noticed_by_who_reads_it(path: Path, samples: list[Sample], tmp_path: Path) -> None:
    metadata = pq.ParquetFile(path).metadata
    group = metadata.row_group(1)
    for number in range(group.num_columns):
        column = group.column(number)
        data = bytearray(path.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        data[start + column.total_compressed_size - 1] ^= 1  # the last byte of the last page
        (tmp_path / "damaged").write_bytes(data)
        found = Samples(tmp_path / "damaged")
        assert found[GROUP - 1] == samples[GROUP - 1] and found[2 * GROUP] == samples[2 * GROUP]
        with pytest.raises(DatasetError, match=rf"damaged is damaged, rows {GROUP} to {2 * GROUP - 1} can not be read"):
            found[GROUP]
        with pytest.raises(DatasetError, match="build it again"):
            list(found)
