"""Heads to a Hub of this machine and back, through huggingface_hub's own client."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import ModelCard, constants
from torch import nn

from manifests.errors import ModelError
from stages.train_head.heads.base import Head, HeadBatch, HeadOutput
from stages.train_head.heads.checkpoint import save_head
from stages.train_head.heads.grounding_head import GroundingHead
from stages.train_head.heads.hub import FILES, fetch_head
from tests.hub import TOKEN, Hub, server
from tests.stages.train_head.heads.batches import SHAPE, make_batch
from tests.stages.train_head.heads.known_heads import files_of, make_evaluation, make_head

NAME = "ann/head"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with server(tmp_path / "downloads") as found:
        yield found


@dataclass(frozen=True, kw_only=True)
class DotConfig:
    """A user's options."""

    scale: float = 1.0


class Dot(Head):
    """The mean map, scaled and shifted."""

    name: ClassVar[str] = "dot"
    Config: ClassVar[type] = DotConfig

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.shift = nn.Parameter(torch.randn(1))

    def forward(self, batch: HeadBatch) -> HeadOutput:
        return HeadOutput(coarse=self.config.scale * batch.attention.mean(1) + self.shift)

    def coarse_size(self, grid: int) -> int:
        return grid


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pushed_head_comes_back_to_the_bit_with_all_that_is_known_of_it(hub: Hub, tmp_path: Path) -> None:
    head = make_head()
    head.evaluation = make_evaluation()
    address = head.push_to_hub(NAME, private=True)
    repo = hub.repos[NAME]
    assert repo.private and address.endswith(f"{NAME}/commit/{repo.main}") and len(repo.commits) == 2
    assert all(token == TOKEN for method, path, token in hub.asked if NAME in path or method == "POST")
    save_head(head, tmp_path / "here")
    there = repo.commits[repo.main]
    assert set(there) == {".gitattributes", *FILES}
    assert {name: there[name] for name in files_of(tmp_path / "here")} == files_of(tmp_path / "here")
    for kind in (Head, GroundingHead):
        back = kind.from_pretrained(NAME)
        assert type(back) is GroundingHead and not back.training and equal_weights(back, head)
        assert (back.shape, back.config, back.priors) == (head.shape, head.config, head.priors)
        assert (back.record, back.evaluation) == (head.record, head.evaluation)
    assert torch.equal(back(make_batch()).coarse, head(make_batch()).coarse)
    back.push_to_hub("ann/again")
    again = hub.repos["ann/again"].commits[hub.repos["ann/again"].main]
    assert {n: b for n, b in again.items() if n != "README.md"} == {n: b for n, b in there.items() if n != "README.md"}


def test_the_card_on_the_hub_says_the_numbers_of_metrics_json(hub: Hub) -> None:
    head = make_head()
    head.evaluation = make_evaluation()
    head.push_to_hub(NAME)
    card, files = ModelCard.load(NAME), hub.repos[NAME].commits[hub.repos[NAME].main]
    found = {(r.dataset_type, r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    metrics = json.loads(files["metrics.json"])
    expected = {}
    for row in metrics["results"]:
        shown = {("res-flmm", "refined"): ("ciou", "miou"), ("png", "refined"): ("average_recall",)}
        shown |= {("keywords", "selector λ=0.3"): ("f1",)}
        groups = {"res-flmm": ["all"], "keywords": ["word"]}.get(row["protocol"], ["all", "thing", "stuff", "singular"])
        if row["metric"] in shown.get((row["protocol"], row["method"]), ()) and row["group"] in groups:
            name = row["metric"] if row["protocol"] == "res-flmm" else f"{row['metric']}_{row['group']}"
            expected[row["dataset"], row["split"], name] = row["value"]["value"]
    assert found == expected and len(found) == 7
    assert f"--head hf://{NAME}" in card.text


def test_a_new_head_takes_the_old_ones_numbers_away(hub: Hub) -> None:
    first = make_head()
    first.evaluation = make_evaluation()
    first.push_to_hub(NAME)
    make_head(1).push_to_hub(NAME)
    assert "metrics.json" not in hub.repos[NAME].commits[hub.repos[NAME].main]
    assert Head.from_pretrained(NAME).evaluation is None
    old = list(hub.repos[NAME].commits)[1]
    assert equal_weights(Head.from_pretrained(NAME, revision=old), first)
    assert "metrics.json" in files_of(fetch_head(f"hf://{NAME}@{old}"))


def test_a_users_own_head_needs_nothing_of_its_own_for_it(hub: Hub, tmp_path: Path) -> None:
    head = Dot(SHAPE, DotConfig(scale=2.0))
    head.save_pretrained(tmp_path / "dot")
    described = json.loads((tmp_path / "dot" / "config.json").read_text())
    assert described["head"] == "dot" and described["config"] == {"scale": 2.0}  # ours, not the mixin's
    head.push_to_hub(NAME)
    for back in (Dot.from_pretrained(NAME), Dot.from_pretrained(tmp_path / "dot"), copy.deepcopy(head)):
        assert type(back) is Dot and back.config == DotConfig(scale=2.0) and equal_weights(back, head)
    with pytest.raises(ModelError, match="'dot'"):
        Head.from_pretrained(NAME)  # not one of this program's
    make_head().push_to_hub("ann/other")
    with pytest.raises(ModelError, match="'unet-sam', not 'dot'"):
        Dot.from_pretrained("ann/other")
    with pytest.raises(TypeError, match="abstract"):
        Head(SHAPE, DotConfig())


@pytest.mark.parametrize(
    ("prepare", "where", "says"),
    [
        (lambda hub: None, "hf://ann/nothing", "no such repository, or it is private: check the name"),
        (lambda hub: hub.add(NAME, {"config.json": b"{}"}), f"hf://{NAME}@v9", "no revision v9"),
        (lambda hub: hub.add(NAME, {"config.json": b"{}"}, gated=True), f"hf://{NAME}", f"ask for access at https://huggingface.co/{NAME}"),
        (lambda hub: hub.add(NAME, {"other.bin": b"{}"}), f"hf://{NAME}", "holds no head: config.json is missing"),
        (lambda hub: None, "hf://a/b/c", "give user/name"),
        (lambda hub: None, "hf://../..", "give user/name"),
    ],
)  # fmt: skip
def test_what_can_not_be_had_is_one_line_with_a_cure(hub: Hub, prepare: Callable, where: str, says: str) -> None:
    prepare(hub)
    with pytest.raises(ModelError) as error:
        fetch_head(where)
    assert says in str(error.value) and "\n" not in str(error.value) and TOKEN not in str(error.value)


def test_without_a_network_the_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head()
    head.push_to_hub(NAME)
    Head.from_pretrained(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert equal_weights(Head.from_pretrained(NAME), head)
    with pytest.raises(ModelError, match="hf download ann/unseen --local-dir DIR"):
        Head.from_pretrained("ann/unseen")
    with pytest.raises(ModelError, match=f"hf upload {NAME} DIR"):
        head.push_to_hub(NAME)
    assert len(hub.asked) == asked


def test_pushing_without_the_right_token_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match="hf auth login") as error:
        make_head().push_to_hub(NAME)
    assert "\n" not in str(error.value) and "hf_wrong" not in str(error.value)


def test_a_missing_folder_never_becomes_somebody_elses_head(hub: Hub) -> None:
    hub.add("runs/head", {"config.json": b"{}"})
    with pytest.raises(ModelError, match="no such folder; a head of the Hub is hf://user/name"):
        fetch_head("runs/head")
    assert hub.asked == []


class Bomb:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "change",
    [
        {"head": "os:system"},
        {"head": "antigravity:Head"},
        {"head": "../../../../etc/passwd"},
        {"head": ["unet-sam"]},
        {"config": {"sam": {"__reduce__": "os.system"}}},
        {"config": "os.system"},
        {"shape": {"channels": 10**12, "layers": 3, "width": 10**12}},
        {"priors": "os.system"},
        {"auto_map": {"AutoModel": "evil.Head"}},
    ],
)
def test_nothing_of_a_hostile_repository_is_imported_or_run(
    hub: Hub, tmp_path: Path, change: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_head(make_head(), tmp_path / "head")
    files = files_of(tmp_path / "head")
    bomb = pickle.dumps(Bomb())
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | change).encode()
    files |= {"evil.py": b"import os; os.mkdir('exploded')", "pytorch_model.bin": bomb, "sub/config.json": b"{}"}
    files |= {"../evil.txt": b"out", "training.pkl": bomb}
    hub.add(NAME, files)
    before = set(sys.modules)
    for kind in (Head, GroundingHead):
        with pytest.raises(ModelError) as error:
            kind.from_pretrained(NAME)
        assert "\n" not in str(error.value)
    assert not {"antigravity", "evil"} & (set(sys.modules) - before)
    assert not (tmp_path / "exploded").exists()
    fetched = {path.name for path in (tmp_path / "downloads").rglob("*") if path.is_symlink()}
    assert fetched == {"config.json", "model.safetensors", "training.json"}
    assert not any(path.endswith((".py", ".bin", ".pkl", ".txt")) for _, path, _ in hub.asked)


def test_pickled_weights_under_the_name_of_safetensors_are_refused(hub: Hub, tmp_path: Path) -> None:
    save_head(make_head(), tmp_path / "head")
    hub.add(NAME, files_of(tmp_path / "head") | {"model.safetensors": pickle.dumps(Bomb())})
    with pytest.raises(ModelError, match="can not be read as weights"):
        Head.from_pretrained(NAME)
    assert not Path("exploded").exists()
