"""Capture on is on, off is off, and both say what transformers itself says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from manifests.errors import ModelError
from stages.evaluate.qa.questions import Question, scene_questions
from stages.evaluate.qa.scenes import check_scenes
from stages.evaluate.qa.speakers import Capturing, Plain, PlainLMM
from stages.extract import capture as module
from stages.extract.attention import IMPLEMENTATION, RowsPass
from stages.extract.images import pad_to_square
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm

TINY = resolve_lmm("tiny")
ASKED = scene_questions(6)


@pytest.fixture(scope="module")
def capturing() -> Capturing:
    return Capturing(FrozenLMM(TINY))


def said_by_transformers(questions: list[Question], most: int) -> list[list[int]]:
    """Greedy answers of the checkpoint by transformers' own classes, with the end token cut off."""
    model = LlavaForConditionalGeneration.from_pretrained(TINY.source).eval()
    processor = AutoProcessor.from_pretrained(TINY.source)
    found = []
    for each in questions:
        square, _ = pad_to_square(each.image, TINY.square.image_size, TINY.square.mean)  # as F-LMM pads
        inputs = processor(text=TINY.template.format(prompt=each.text), images=square, return_tensors="pt")
        ids = model.generate(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], max_new_tokens=most,
                             do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()  # fmt: skip
        found.append(ids[: ids.index(2)] if 2 in ids else ids)
    return found


def test_off_and_on_say_what_transformers_says(capturing: Capturing) -> None:
    plain = Plain(PlainLMM(TINY))
    expected = said_by_transformers(ASKED, 40)
    assert sum(map(len, expected)) > 25
    for speaker in (plain, capturing):
        assert [list(speaker.reply(each.image, each.text, 40).ids) for each in ASKED] == expected
    assert plain.attention == "sdpa" and capturing.attention == IMPLEMENTATION


def test_on_captures_every_layer_of_every_answer_and_off_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[int, int]] = []
    original = RowsPass.put

    def spy(self: RowsPass, layer: int, weights: torch.Tensor) -> None:
        put.append((layer, weights.shape[2]))
        original(self, layer, weights)

    monkeypatch.setattr(RowsPass, "put", spy)
    each = next(each for each in ASKED if each.kind == "listing")
    reply = Plain(PlainLMM(TINY)).reply(each.image, each.text, 40)
    assert put == []
    on = Capturing(FrozenLMM(TINY))
    assert on.reply(each.image, each.text, 40) == reply
    tokens = len(reply.ids)
    assert put == [(layer, rows) for rows in (1, tokens) for layer in range(TINY.layers)]
    summary = on.summary()
    assert (summary["prompt_passes"], summary["answer_passes"], summary["rows"]) == (1, 1, 1 + tokens)
    assert 0 < summary["least_image_mass"] <= 1


def test_what_is_captured_beside_an_answer_is_the_prompts_last_row(capturing: Capturing) -> None:
    """Against the row of eager attention with all its outputs."""
    each = ASKED[0]
    lmm = capturing.lmm
    asked = capturing._asked(each.image, each.text)
    found: list[Any] = []
    original = capturing._count
    capturing._count = lambda maps, rows: found.append(maps) or original(maps, rows)  # type: ignore[method-assign]
    capturing.reply(each.image, each.text, 4)
    del capturing._count
    eager = LlavaForConditionalGeneration.from_pretrained(TINY.source, attn_implementation="eager").eval()
    inputs = lmm.processor.collate_prompts([asked])
    rows = torch.stack([layer[0, :, -1] for layer in eager(**inputs, output_attentions=True).attentions])
    columns = [position for position, token in enumerate(asked.prompt.ids) if token == lmm.processor.image_id]
    torch.testing.assert_close(found[0][0], rows[..., columns], atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), 0.0, 3.0])
def test_rows_that_are_no_attention_stop_the_check(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.AttentionCapture._stacked
    monkeypatch.setattr(
        module.AttentionCapture,
        "_stacked",
        lambda self, run, device: torch.full_like(original(self, run, device), value),
    )
    with pytest.raises(ModelError, match="no attention on the image"):
        Capturing(FrozenLMM(TINY)).reply(ASKED[0].image, ASKED[0].text, 4)


def test_the_check_of_the_scenes() -> None:
    check = check_scenes(TINY, 6)
    assert check.about["identical"] and check.about["differences"] == [] and check.about["questions"] == 6
    assert check.about["attention"] == {"off": "sdpa", "on": IMPLEMENTATION}
    assert check.about["capture"]["prompt_passes"] == 6 and check.about["silent"] == 0
    values = {(m.method, m.group): m.value.value for m in check.measures if m.value}
    for method in ("capture on", "capture off"):
        right = [each.is_right(x.on.text) for each, x in zip(scene_questions(6), check.exchanges, strict=True)]
        assert values[method, "all"] == sum(right) / 6
    assert values["capture on", "colour"] == 1.0  # the tiny LMM knows its colours


def test_an_lmm_that_was_changed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on the captured LMM's last layer: some answers differ, and each is listed with both texts."""
    load = FrozenLMM._load

    def noisy(self: FrozenLMM, options: dict[str, Any]) -> Any:
        model = load(self, options)
        if not isinstance(self, PlainLMM):
            with torch.no_grad():
                weight = model.lm_head.weight
                weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        return model

    monkeypatch.setattr(FrozenLMM, "_load", noisy)
    about = check_scenes(TINY, 6).about
    assert not about["identical"]
    assert 0 < len(about["differences"]) <= 6
    assert all(each["on"]["ids"] != each["off"]["ids"] for each in about["differences"])
