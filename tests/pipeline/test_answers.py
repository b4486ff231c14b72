"""`extract --answer`: questions are answered, planned, extracted; killed, it goes on; who trains meets no replies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cache.places import place_of
from cache.priors import Priors
from manifests.errors import PipelineError
from manifests.manifest import Samples
from manifests.schema import Sample
from pipeline import answers as running
from stages.analyze.objects import subjects_of
from stages.extract.answer_units import AnswerUnit, AnswerWorker
from stages.extract.answers import ENDING, Answers
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM
from stages.extract.plan import plan_images
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMInput
from stages.extract.sam import sam_config
from stages.extract.work import WorkerConfig
from stages.train_head.overlaps import attention_of, spread
from stages.train_head.ranking import rank_maps
from stages.train_head.trainer import split_indices
from tests.helpers import cli, tree
from tests.stages.extract.questions import questions

COUNT = 24  # of which 16 are asked: two units
REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers") / "data"


@pytest.fixture(scope="module", autouse=True)
def samples(root: Path) -> Iterator[list[Sample]]:
    """What `extract` finds for any --dataset."""
    found = questions(root, COUNT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extract.build_samples", lambda args: (found[: args.limit], {}))
        patch.setattr("os.cpu_count", lambda: 1)  # threads that wait for each other are slow beside other work
        yield found


def command(root: Path, cache: Path, *more: Any) -> list[Any]:
    return ["extract", "--data-root", root, "--cache", cache, "--local", "--max-answer-tokens", "40", *more]


@pytest.fixture(scope="module")
def cache(root: Path, samples: list[Sample]) -> Path:
    cache = root.parent / "cache"
    cli(*command(root, cache))
    return cache


def test_replies_are_in_the_manifest_and_their_words_in_the_slots(
    root: Path, cache: Path, samples: list[Sample]
) -> None:
    """As a live pass over the reply's ids has them: every word's maps, or those of the whole answer."""
    priors, lmm = Priors.open(cache), FrozenLMM(resolve_lmm("tiny"))
    assert not priors.failures and len(priors) == COUNT
    identity = priors.samples.meta["answers"]
    assert identity["generation"] == {"method": "greedy", "batch": 8, "max_tokens": 40}
    assert identity["lmm"] == priors.identity["lmm"]
    cut = 0
    for index, (sample, before) in enumerate(zip(priors.samples, samples, strict=True)):
        assert (sample.reply is None) == (before.split == "train")
        item = priors.read(index)
        assert item is not None and len(item.attention) == sample.slots
        if sample.reply is None:
            assert sample == before
            continue
        ids, words = list(sample.reply.ids), list(sample.reply.words)
        cut += not sample.reply.finished
        assert item.answer_ids.tolist() == ids and item.answer_word.tolist() == words
        assert sample.reply.text == lmm.processor.tokenizer.decode(ids).strip()
        owners = [0] * len(ids) if sample.task == "reasoning" else words
        assert item.answer_object.tolist() == item.hidden_object.tolist() == owners
        image = open_image(root / sample.image_path, (sample.width, sample.height))
        tokens = [[p for p, owner in enumerate(owners) if owner == slot] for slot in range(sample.slots)]
        prompt = lmm.processor.prompt(sample.prompt, image.size)
        one = LMMInput(image=lmm.prepare(image), prompt=prompt, answer_ids=ids, object_tokens=tokens)
        live = lmm.run([one]).attention.flatten(1, 2).unflatten(-1, (12, 12)).numpy()
        found = item.attention.astype(np.float32) * item.attention_mass[..., None, None] / 144
        np.testing.assert_allclose(found, live, rtol=2e-3, atol=1e-6)
    assert 0 < cut < 16
    assert priors.samples.searched().tolist() == [s.task == "conversation" and s.split == "val" for s in samples]


def test_without_answers_captions_are_forced_and_questions_fail(
    root: Path, samples: list[Sample], tmp_path: Path
) -> None:
    cli(*command(root, tmp_path / "cache", "--no-answer"))
    priors = Priors.open(tmp_path / "cache")
    assert [i for i, s in enumerate(samples) if s.task == "reasoning"] == sorted(priors.failures)
    assert all(
        "is a question without an answer to ground: extract with --answer" in r for r in priors.failures.values()
    )
    assert all(len(item.attention) == len(s.objects) for i, s in enumerate(samples) if (item := priors.read(i)))
    assert not (tmp_path / "cache.answers.parquet").exists() and "answers" not in priors.samples.meta


def test_a_run_again_asks_nothing_and_a_plan_without_answers_is_not_answered(
    root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(cache)
    monkeypatch.setattr(running, "_ask", None)  # it would be called
    cli(*command(root, cache))
    assert "nothing was left to do" in capsys.readouterr().out and tree(cache) == before
    cli(*command(root, cache, "--max-answer-tokens", "41"), expect=2)
    assert "generation.max_tokens: cache has 40, this run 41" in capsys.readouterr().err
    monkeypatch.undo()
    cli(*command(root, tmp_path / "cache", "--limit", "3", "--no-answer"))
    monkeypatch.setattr("pipeline.extract.build_samples", lambda args: (questions(root, 3), {}))
    cli(*command(root, tmp_path / "cache"), expect=2)
    assert "was planned with other answers, or with none (2 of 2 are not in" in capsys.readouterr().err
    cli(*command(root, tmp_path / "cache", "--overwrite"))
    assert not Priors.open(tmp_path / "cache").failures


def test_a_cache_without_its_file_of_answers_is_resumed_with_those_of_its_manifest(
    root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    before = tree(copy)
    monkeypatch.setattr(running, "_ask", None)  # it would be called
    (copy / "rows.parquet").unlink()
    cli(*command(root, copy))
    out = capsys.readouterr().out
    assert f"tokens: {copy / 'manifest.parquet'}\n" in out and " objects and words of replies of 24 samples, 0 " in out
    assert tree(copy) == before and not (tmp_path / "copy.answers.parquet").exists()
    cli(*command(root, copy, "--max-answer-tokens", "41"), expect=2)
    error = capsys.readouterr().err
    assert f"{copy / 'manifest.parquet'} holds answers of other settings: generation.max_tokens: cache has 40" in error


def test_a_dry_run_says_how_many_are_answered(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli(*command(root, tmp_path / "cache", "--dry-run"))
    shown = capsys.readouterr().out
    assert "answers  16 samples are answered first, with 40 tokens at most; so many are planned for" in shown
    assert "24 (0 can not be used), " in shown and not list(tmp_path.iterdir())


def same_but_the_record(found: Path, expected: Path) -> bool:
    """Every byte of answers, manifest, plan and priors."""
    names = ("manifest.parquet", "rows.parquet", "priors.zarr")
    one, other = tree(found), tree(expected)
    answers = [(cache.parent / f"{cache.name}.answers.parquet").read_bytes() for cache in (found, expected)]
    return answers[0] == answers[1] and all(one[n] == data for n, data in other.items() if n.startswith(names))


@pytest.mark.parametrize("last", [False, True])
def test_stopped_it_goes_on_and_ends_alike(
    root: Path, cache: Path, tmp_path: Path, last: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In the first unit, or in the last: then what would come after the answers is not begun."""

    class Stopped(AnswerWorker):
        def run(self, unit: AnswerUnit) -> dict[str, Any]:
            if unit.number == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().run(unit)

    with monkeypatch.context() as patch:
        patch.setattr("stages.extract.answer_units.AnswerWorker", Stopped)
        cli(*command(root, tmp_path / "cache"), expect=2)
    left = 0 if last else 8
    assert f"stopped: {left} of 16 answers are left; run the same command again to go on" in capsys.readouterr().err
    assert pq.ParquetFile(tmp_path / "cache.answers.parquet").metadata.num_rows == 16 - left
    assert not (tmp_path / "cache" / "cache.json").exists()
    cli(*command(root, tmp_path / "cache"))
    assert same_but_the_record(tmp_path / "cache", cache)


def test_killed_it_goes_on_and_ends_alike(root: Path, cache: Path, tmp_path: Path) -> None:
    """In a process of its own, after the first unit."""
    script = (
        "import os, sys; import pipeline.extract, pipeline.answers; from pathlib import Path\n"
        "from pipeline.cli import main; from tests.stages.extract.questions import questions\n"
        f"pipeline.extract.build_samples = lambda args: (questions(Path({str(root)!r}), {COUNT}), {{}})\n"
        "pipeline.answers.SAVED_EVERY = 0; os.cpu_count = lambda: 1\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = map(str, command(root, tmp_path / "cache"))
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=REPO, env=os.environ)
    file = tmp_path / "cache.answers.parquet"
    while process.poll() is None and not file.exists():
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert pq.ParquetFile(file).metadata.num_rows in (8, 16)
    cli(*command(root, tmp_path / "cache"))
    assert same_but_the_record(tmp_path / "cache", cache)


def test_ray_workers_give_the_same_answers(root: Path, cache: Path, samples: list[Sample], tmp_path: Path) -> None:
    images = plan_images(samples, root, sam_config("tiny"))
    place, local = place_of(tmp_path / "cache"), place_of(cache)
    config = WorkerConfig(
        cache=place, images=place, data_root=root, lmm=resolve_lmm("tiny"), dtype="float32", merge="mean", sam="tiny",
        sam_checkpoint=None, device="cpu", gpus=0, threads=1,
    )  # fmt: skip
    answers = Answers(place, samples, images)
    answers.load(Samples(cache / "manifest.parquet").meta["answers"], overwrite=False)
    running._ask(answers, config, 40, {"workers": 1, "local": False, "gpus": 0, "threads": 1})
    assert place.read_beside(ENDING) == local.read_beside(ENDING)


def test_words_of_replies_are_no_objects_to_train_or_rank_by(
    cache: Path, samples: list[Sample], tmp_path: Path
) -> None:
    priors = Priors.open(cache)
    assert split_indices(priors, "train") == [i for i, s in enumerate(samples) if s.split == "train"]
    assert split_indices(priors, "val") == []
    assert spread(priors, "test", 99) == [i for i, s in enumerate(samples) if s.split == "test"]
    with pytest.raises(
        PipelineError, match=r"split val are the LMM's own captions.* no mask .*it has test, val, train"
    ):
        spread(priors, "val", 99)
    with pytest.raises(PipelineError, match="no sample of the split nowhere"):
        spread(priors, "nowhere", 99)
    with pytest.raises(PipelineError, match="split val are the LMM's own captions"):
        rank_maps(priors, "val")
    assert rank_maps(priors, "test").objects == 8
    chosen = spread(priors, "test", 99)
    assert all(len(attention_of(priors, i)[0]) == 1 for i in chosen)
    assert len(subjects_of(priors, chosen, 0).objects) == 8
    cli("train-head", "--cache", cache, "--out", tmp_path / "head", "--epochs", "1", "--no-refiner")
    record = json.loads((tmp_path / "head" / "training.json").read_text())
    assert [row["samples"] for row in record["data"]] == [8]
    cli("cache", "verify", "--cache", cache)
    cli("cache", "prune", "--cache", cache, "--channels", "5", "--to", tmp_path / "pruned")
    cli("cache", "encode", "--cache", cache, "--encoding", "log8", "--to", tmp_path / "encoded")
    assert Samples(tmp_path / "encoded" / "manifest.parquet").meta == priors.samples.meta
