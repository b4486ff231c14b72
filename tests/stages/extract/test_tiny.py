"""The embedded models: what is committed is what was recorded, loads plainly, and never saw a test scene."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from manifests.scenes.world import SPLIT_SEEDS, scene_seed
from stages.extract.checkpoint import file_sha256
from stages.extract.presets import TINY
from stages.extract.sam import load_sam
from stages.extract.tiny import train_lmm, train_sam

FOLDERS = {"lmm": TINY / "lmm", "sam": TINY / "sam"}


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_the_recorded_ones(name: str) -> None:
    record = json.loads((FOLDERS[name] / "training.json").read_text())
    weights = FOLDERS[name] / "model.safetensors"
    assert file_sha256(weights) == record["sha256"]
    assert weights.stat().st_size < 12.5e6
    while record:  # a run may have gone on from an earlier one
        assert record["scenes"].startswith("split pretrain, indices ")
        assert int(record["scenes"].split()[-1]) < 1_000_000_000  # where the seeds of the next split begin
        assert {"command", "config", "hardware", "objective", "minutes"} <= record.keys()
        record = record.get("earlier")


def test_the_lmm_loads_plainly_and_answers() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(FOLDERS["lmm"]).eval()
    processor = AutoProcessor.from_pretrained(FOLDERS["lmm"])
    assert model.dtype == torch.float32
    image, prompt, _ = train_lmm.conversation(0, "val")
    text = train_lmm.TEMPLATE.format(prompt=prompt)
    inputs = processor(text=text, images=image, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(ids, skip_special_tokens=True).split()[0] in {"the", "a", "in", "this", "there", "we"}


def test_the_sam_loads() -> None:
    assert sum(p.numel() for p in load_sam("tiny").parameters()) < 1_000_000


def test_split_seeds_are_disjoint() -> None:
    ranges = sorted((seed, seed + 1_000_000_000) for seed in SPLIT_SEEDS.values())
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    with pytest.raises(ValueError, match="outside"):
        scene_seed("pretrain", 1_000_000_000)


@pytest.mark.parametrize("module", [train_lmm, train_sam])
def test_training_draws_from_the_split_pretrain_only(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    original = module.make_scene

    def spy(split: str, index: int, **options: bool) -> Any:
        asked.append((split, index))
        return original(split, index, **options)

    monkeypatch.setattr(module, "make_scene", spy)
    assert len(list(islice(stream(module), 12))) == 12
    assert {split for split, _ in asked} == {"pretrain"}
    assert sorted({index for _, index in asked}) == list(range(12))


def stream(module: Any) -> Iterator[Any]:
    """The samples that the training script iterates over, with its own defaults."""
    if module is train_sam:
        return iter(train_sam.PromptedSegments())
    from stages.extract.presets import resolve_lmm
    from stages.extract.processor import LMMProcessor

    return iter(train_lmm.Conversations(LMMProcessor(resolve_lmm("tiny")).tokenizer, 72, samples=1000))


def test_a_conversation_is_a_function_of_its_index() -> None:
    first, again = train_lmm.conversation(5), train_lmm.conversation(5)
    assert first[1:] == again[1:]
    assert first[0].tobytes() == again[0].tobytes()


def test_any_number_of_workers_renders_the_same_batches() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDERS["lmm"])
    stream = train_lmm.Conversations(tokenizer, 24, samples=400, first=5, batch=2)
    alone, shared = (list(islice(DataLoader(stream, 2, num_workers=workers), 5)) for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
