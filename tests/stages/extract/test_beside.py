"""Capture beside `generate`: every token's logits are those of a plainly loaded model, and the rows are the pass's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.families import save_family
from benchmarks.family_inputs import family_inputs
from manifests.errors import ModelError
from stages.extract.attention import ACTIVE, WordRows
from stages.extract.capture import AttentionCapture
from stages.extract.repair import repaired

# each for what it has: plain, a hybrid, sliding windows, shared keys, soft-capped scores (eager), logits of its own
FAMILIES = ["llava", "qwen3.5-vl", "gemma3", "gemma4", "gemma4-bidirectional", "paligemma2", "llama4", "lfm2-vl"]
AUTO: Any = AutoModelForImageTextToText
STEPS = {
    "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False,
    "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip


def last_rows(inputs: dict[str, Any], rows: list[WordRows]) -> list[WordRows]:
    """The last position of every prompt of a left-padded batch, from which its answer's first token is read."""
    last = inputs["input_ids"].shape[1] - 1
    return [WordRows(objects=[[last]], columns=sample.columns, answer=[]) for sample in rows]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_is_the_baselines_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path)
    plain = repaired(AUTO.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False))
    capture = AttentionCapture(AUTO.from_pretrained(folder, dtype=torch.float32))
    inputs, rows = family_inputs(folder, capture.model.config, "left")
    wanted = last_rows(inputs, rows)
    expected = plain.generate(**inputs, **STEPS)
    with capture.beside(wanted) as found:
        said = capture.model.generate(**inputs, **STEPS)
    assert torch.equal(said.sequences, expected.sequences)
    assert len(said.logits) == 6
    assert all(torch.equal(one, other) for one, other in zip(said.logits, expected.logits, strict=True))
    alone = capture.run(inputs, wanted).attention
    assert found[0].shape == alone.shape and found[0].sum() > 0
    torch.testing.assert_close(
        found[0], alone, atol=2e-6, rtol=0
    )  # padding moves positions, one query rounds otherwise


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[AttentionCapture, dict[str, Any], list[WordRows]]:
    folder = save_family("llava", tmp_path_factory.mktemp("llava"))
    capture = AttentionCapture(AUTO.from_pretrained(folder, dtype=torch.float32))
    return capture, *family_inputs(folder, capture.model.config, "none")


def test_the_first_pass_only(llava: tuple[AttentionCapture, dict[str, Any], list[WordRows]]) -> None:
    capture, inputs, rows = llava
    with capture.beside(rows) as found:
        capture.model(**inputs)
        assert not ACTIVE and found == []
        capture.model(**{**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])})
    torch.testing.assert_close(found[0], capture.run(inputs, rows).attention, atol=0, rtol=0)


def test_nothing_stays_active(llava: tuple[AttentionCapture, dict[str, Any], list[WordRows]]) -> None:
    capture, inputs, rows = llava
    with pytest.raises(KeyError), capture.beside(rows):
        assert len(ACTIVE) == len(capture.attentions)
        raise KeyError
    assert not ACTIVE
    with pytest.raises(ModelError, match="0 of its 3 layers were captured"), capture.beside(rows):
        pass
    cache = capture.model(**inputs, use_cache=True).past_key_values
    token = {"input_ids": inputs["input_ids"][:, -1:], "cache": cache}
    with pytest.raises(ModelError, match="attends to a cache"), capture.beside(rows):
        capture.model(**token)  # its first pass is none over a whole prompt
    assert not ACTIVE
