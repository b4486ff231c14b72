"""Heads beside each other: what a run gives, and that no run is made twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cache.priors import Priors
from pipeline.comparison import Condition, Job, compare, held_out_indices, numbers, run_one
from pipeline.comparison_table import Found, summaries, summary, table
from stages.evaluate.results import ObjectResult

HALF = ",".join(map(str, range(15)))


@pytest.fixture(scope="module")
def runs(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Job], Found]:
    """Two conditions, in this process."""
    given: dict[str, Any] = {"seed": 0, "epochs": 1, "device": "cpu", "out": tmp_path_factory.mktemp("comparison")}
    options: dict[str, dict[str, Any]] = {"all": {}, "half": {"refiner": False, "channels": HALF}}
    conditions = [Condition(name=n, title=n, cache=str(small_cache), options=o) for n, o in options.items()]
    jobs = [Job(condition=each, **given) for each in conditions]
    return jobs, compare(jobs, processes=1)


def test_a_run_says_what_it_found_and_what_it_cost(runs: tuple[list[Job], Found], small_cache: Path) -> None:
    everything, half = (runs[1][name, 0] for name in ("all", "half"))
    for result in (everything, half):
        assert {"res_ciou", "res_miou", "png_all", "png_thing", "png_stuff", "val_ciou"} <= result.keys()
        assert result["steps"] > 0 and result["s_per_epoch"] > 0 and result["failed_samples"] == 0
    priors = Priors.open(small_cache)
    assert priors.images is not None
    stored = priors.store.stored_bytes()
    whole = sum(stored.values()) + sum(priors.images.stored_bytes().values())
    assert everything["bytes_per_object"] == pytest.approx(whole / priors.objects(), abs=0.3)
    # half of the maps, and no embeddings
    kept = sum(stored.values()) - (stored["attention"] + stored["attention_mass"]) / 2
    assert half["bytes_per_object"] == pytest.approx(kept / priors.objects(), abs=0.3)
    assert half["maps"] == list(range(15)) and half["parameters"] < everything["parameters"]


def test_a_second_comparison_trains_nothing(
    runs: tuple[list[Job], Found], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, found = runs

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr("stages.train_head.trainer.train", fails)
    assert compare(jobs, processes=2) == found
    assert "2 runs, 2 of them done, 0 to do" in capsys.readouterr().out
    assert sorted(path.suffix for path in jobs[0].out.iterdir()) == [".json", ".json"]  # no states are left
    with pytest.raises(AssertionError, match="it trained"):  # another recipe is another run
        run_one(Job(condition=jobs[0].condition, seed=0, out=jobs[0].out, epochs=2, device="cpu"))


def test_processes_find_the_same(runs: tuple[list[Job], Found], tmp_path: Path) -> None:
    jobs, found = runs
    again = [Job(condition=job.condition, seed=0, out=tmp_path, epochs=1, device="cpu") for job in jobs]
    other = compare(again, processes=2)
    assert all(other[key]["res_ciou"] == pytest.approx(found[key]["res_ciou"], abs=0.02) for key in found)
    assert json.loads(again[1].file.read_text()) == other["half", 0]


def test_numbers_pool_splits_and_keep_shifted_scenes_apart() -> None:
    def result(dataset: str, split: str, intersection: int) -> ObjectResult:
        task = "narrative" if dataset.endswith("png") else "referring"
        return ObjectResult(
            sample=0, number=0, sample_id=f"{dataset}{split}", dataset=dataset, split=split, task=task, group="",
            image_id=split, phrase="it", is_thing=True, plural=False, pixels=100, area=10, intersection=intersection,
            union=10, coarse_intersection=0, coarse_union=10,
        )  # fmt: skip

    referring = [result("scenes-refcoco", s, n) for s, n in (("testA", 10), ("testB", 5))]
    narrative = [result("scenes-png", "val", 4), result("shifted-png", "val", 1)]
    found = numbers([*referring, result("shifted-refcoco", "testA", 2), *narrative])
    assert found["res_ciou"] == pytest.approx(15 / 20)
    assert found["shifted_res_ciou"] == pytest.approx(2 / 10)
    assert found["png_all"] == pytest.approx(0.4) and "png_stuff" not in found
    assert numbers([]) == {}


def test_held_out_samples_are_those_that_nothing_is_chosen_on(small_cache: Path) -> None:
    samples = Priors.open(small_cache).samples
    chosen = [samples[index] for index in held_out_indices(samples)]
    splits = {(each.task, each.split) for each in chosen}
    assert splits == {("referring", "testA"), ("referring", "testB"), ("narrative", "val")}


def test_summaries_and_their_table() -> None:
    assert summary([0.5, 0.7, 0.6]) == {
        "mean": pytest.approx(0.6),
        "spread": pytest.approx(0.2),
        "seeds": [0.5, 0.7, 0.6],
    }
    found: Found = {
        (name, seed): {"res_ciou": value, "parameters": 1000}
        for name, values in {"a": (0.5, 0.6), "b": (0.4, 0.58)}.items()
        for seed, value in enumerate(values)
    }
    row = summaries(found, "b", 2, baseline="a")
    assert row["change_res_ciou"]["seeds"] == [pytest.approx(-0.1), pytest.approx(-0.02)]
    assert summaries(found, "b", 3) == {}  # a seed is missing
    text = table({"b": row}, {"b": "without"})
    assert "49.0 ±9.0" in text and "-6.0 ±4.0" in text and "1,000" in text
