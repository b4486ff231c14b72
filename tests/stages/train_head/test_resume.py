"""A training that was killed goes on as if nothing had happened, alone, and on several workers as on one.

Killed: SIGKILL of a real process at steps that the seed chooses, in the middle of everything, the writing of the state
too. Workers: processes of torch.distributed (gloo), and the whole command through Ray Train.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache.priors import Priors
from manifests.errors import PipelineError
from pipeline.head_options import build
from pipeline.train_head import TrainHead
from stages.train_head.heads.base import HeadBatch, HeadOutput
from stages.train_head.heads.grounding_head import GroundingHead
from stages.train_head.recipe import TrainConfig
from stages.train_head.state import STATE_FILE, read_facts
from stages.train_head.team import Team
from stages.train_head.trainer import Keeping, train
from tests.helpers import cli

RECIPE = TrainConfig(epochs=2, batch_size=3, lr=1e-3, ema=0.9, validate=3, validate_every=4)
Weights = dict[str, torch.Tensor]


class Killed(Exception):
    pass


def run(cache: Path, recipe: TrainConfig, file: Path | None = None, stop: int = 0) -> tuple[Weights, dict[int, float]]:
    """Weights and losses of a training that is stopped after step `stop`, its state stored after every step."""
    priors = Priors.open(cache)
    head, _ = build(TrainHead(cache=str(cache), seed=recipe.seed), priors)
    losses: dict[int, float] = {}

    def on_step(news: dict) -> None:
        losses[news["step"]] = news["loss"]
        if news["step"] == stop:
            raise Killed

    keeping = Keeping(file=file, minutes=0) if file else None
    try:
        history = train(head, priors, recipe, keeping=keeping, on_step=on_step)
        assert history.best is not None and len(history.validations) >= 3
    except Killed:
        pass
    return {name: value.clone() for name, value in head.state_dict().items()}, losses


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_anywhere_it_goes_on_with_the_same_losses_and_weights(
    small_cache: Path, tmp_path: Path, accumulate: int
) -> None:
    recipe = replace(RECIPE, accumulate=accumulate)
    whole, losses = run(small_cache, recipe)
    steps = max(losses)
    found: dict[int, float] = {}
    for stop in (2, steps // 2, steps // 2 + 1, steps - 1, 0):  # also in the first step after going on
        again = run(small_cache, recipe, tmp_path / STATE_FILE, stop)
        assert min(again[1]) == (max(found) if found else 1)  # the step that was not stored, and no other, is repeated
        found |= again[1]
    assert found == losses  # bit for bit, every step
    assert same(again[0], whole)
    facts = read_facts(tmp_path / STATE_FILE)
    assert facts is not None and facts["history"]["steps"] == steps
    assert [v["step"] for v in facts["history"]["validations"]] == sorted(
        {0, *range(4, steps + 1, 4), steps // 2, steps}
    )


def test_a_state_of_another_training_is_refused_by_name(small_cache: Path, tmp_path: Path) -> None:
    run(small_cache, RECIPE, tmp_path / STATE_FILE, stop=2)
    with pytest.raises(PipelineError, match=r"other settings \(recipe.lr: 0.001 there, 0.002 now\).*--restart"):
        run(small_cache, replace(RECIPE, lr=2e-3), tmp_path / STATE_FILE)
    (tmp_path / STATE_FILE).write_bytes(b"\x80\x04torn")
    with pytest.raises(PipelineError, match=r"is not the state of a training .*--restart"):
        run(small_cache, RECIPE, tmp_path / STATE_FILE)


def test_the_command_goes_on_after_sigkill_and_the_head_is_the_same(small_cache: Path, tmp_path: Path) -> None:
    common = ["--cache", str(small_cache), "--epochs", "2", "--batch-size", "2", "--checkpoint-minutes", "0"]
    cli("train-head", *common, "--out", tmp_path / "whole")
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    command = [sys.executable, "run_pipeline.py", "train-head", *common, "--out", str(out)]
    log = tmp_path / "log"
    while not (out / "config.json").exists():
        with log.open("wb") as told:
            process = subprocess.Popen(command, stdout=told, stderr=told, env=os.environ | {"OMP_NUM_THREADS": "2"})
        before = (read_facts(out / STATE_FILE) or {"history": {"steps": 0}})["history"]["steps"]
        more = rng.randint(3, 8)
        while process.poll() is None and kills < 3:
            facts = read_facts(out / STATE_FILE)
            if facts and facts["history"]["steps"] >= before + more:
                time.sleep(rng.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += 1
            time.sleep(0.01)
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL), log.read_text()[-2000:]
    assert kills >= 1 and "going on from step" in log.read_text()
    for folder in (".", "best"):
        a, b = (load_file(tmp_path / name / folder / "model.safetensors") for name in ("whole", "killed"))
        assert same(a, b)
    assert not (out / STATE_FILE).exists()
    a, b = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "killed"))
    assert [v | {"seconds": 0} for v in a["validations"]] == [v | {"seconds": 0} for v in b["validations"]]


class InDouble(GroundingHead):
    """The same head in float64: there, what batches are put together in changes nothing but the last digits.

    In float32 it does: rounding decides ReLUs and box edges near a boundary, and Adam makes full steps of what is
    nearly zero. After 20 steps at the full learning rate that has grown to 1e-4 of a weight.
    """

    def forward(self, batch: HeadBatch) -> HeadOutput:
        assert batch.embeddings is not None
        wide = {"attention": batch.attention.double(), "hidden": batch.hidden.double()}
        wide |= {"answer_hidden": batch.answer_hidden.double(), "embeddings": batch.embeddings.double()}
        return super().forward(replace(batch, **wide))

    @classmethod
    def of(cls, head: torch.nn.Module) -> None:
        """Makes the head one, in place."""
        assert isinstance(head, GroundingHead) and head.refiner is not None
        head.double().__class__ = cls
        head.refiner.prompt_encoder.pe_layer.float()  # it casts coordinates to float32 itself


def run_plain(cache: Path, recipe: TrainConfig, most: int = 10**9, *, double: bool = False) -> tuple[Weights, list]:
    priors = Priors.open(cache)
    head, _ = build(TrainHead(cache=str(cache)), priors)
    if double:
        InDouble.of(head)
    losses: list[float] = []

    def on_step(news: dict) -> None:
        losses.append(news["loss"])
        if news["step"] == most:
            raise Killed

    with suppress(Killed):
        train(head, priors, recipe, team=Team.of_process(), on_step=on_step)
    return {name: value.detach().clone() for name, value in head.state_dict().items()}, losses


def furthest(a: Weights, b: Weights) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_accumulated_batches_are_one_large_batch(small_cache: Path) -> None:
    large = replace(RECIPE, batch_size=6, ema=0.0, validate=0, epochs=2)
    small = replace(large, batch_size=2, accumulate=3)
    (a, losses_a), (b, losses_b) = (run_plain(small_cache, recipe, double=True) for recipe in (large, small))
    assert losses_a == pytest.approx(losses_b, abs=1e-6)  # told in float32
    assert furthest(a, b) < 1e-7


def worker(rank: int, cache: str, recipe: dict, double: bool, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    weights, losses = run_plain(Path(cache), TrainConfig(**recipe), most=20, double=double)
    torch.save((weights, losses), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("double", "epochs", "tolerance"), [(False, 8 * 500, 1e-5), (True, 5, 1e-7)], ids=["float32", "float64"]
)
def test_two_workers_are_one_with_the_double_batch(
    small_cache: Path, tmp_path: Path, double: bool, epochs: int, tolerance: float
) -> None:
    """20 steps; of an epoch's last step one worker has no sample. Float32: at the start of a long training, the paper's
    recipe, which is still warming up; float64: ten times the paper's learning rate, all of it."""
    recipe = TrainConfig(epochs=epochs, batch_size=3, lr=1e-3 if double else 1e-4, validate=0 if double else 4)
    torch.multiprocessing.spawn(worker, (str(small_cache), asdict(recipe), double, str(tmp_path)), nprocs=2)
    one, losses = run_plain(small_cache, replace(recipe, batch_size=6), most=20, double=double)
    assert len(losses) == 20
    for rank in range(2):
        weights, told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert told == pytest.approx(losses, abs=1e-5)
        assert furthest(weights, one) < tolerance


def test_the_command_on_two_workers(small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["--cache", small_cache, "--epochs", "1", "--device", "cpu", "--no-refiner"]
    cli("train-head", *common, "--out", tmp_path / "two", "--workers", "2", "--batch-size", "2")
    cli("train-head", *common, "--out", tmp_path / "one", "--batch-size", "4")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert furthest(a, b) < 1e-3  # five steps at the full rate
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    assert [record["objects"] for record in records] == [records[0]["objects"]] * 2
    assert records[1]["workers"] == 2


def test_bf16_and_averages_train_too(small_cache: Path) -> None:
    plain, losses = run_plain(small_cache, replace(RECIPE, epochs=6))
    mixed, mixed_losses = run_plain(small_cache, replace(RECIPE, epochs=6, precision="bf16"))
    assert mixed_losses[0] == pytest.approx(losses[0], rel=0.02) and mixed_losses != losses
    assert sum(mixed_losses[-4:]) < 0.9 * sum(mixed_losses[:4])
    assert all(value.dtype == plain[name].dtype for name, value in mixed.items())
    last, _ = run_plain(small_cache, replace(RECIPE, epochs=6, ema=0.0))
    assert not same(plain, last)  # the average is what is kept
