"""One answer spoken live: greedy as `reply`, by own settings, streamed; and captured on top of the prompt's past.

Matrix of reuse: every family, and families with windows, chunks and shared keys at sizes where these do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.families import FAMILIES, save_family
from benchmarks.families.dynamic import gemma4
from manifests.errors import ModelError
from manifests.scenes.world import make_scene
from manifests.schema import DEFAULT_PROMPT
from stages.extract.capture import Captured
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import Asked, LMMInput

FRESH = {
    "gemma3", "gemma4", "gemma4-bidirectional", "paligemma2", "aya-vision", "cohere2-vision", "llama4",  # windows
    "qwen3.5-vl", "lfm2-vl",  # hybrids
}  # fmt: skip
"""Families whose tiny checkpoints give no past: here windows are shorter than a prompt."""
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"sliding_window": 400}),
    "gemma3, window within the answer": ("gemma3", {"sliding_window": 44}),
    "paligemma2": ("paligemma2", {"sliding_window": 400}),
    "cohere2-vision": ("cohere2-vision", {"sliding_window": 400}),
    "llama4": ("llama4", {"attention_chunk_size": 400}),
    "llama4, chunk within the answer": ("llama4", {"attention_chunk_size": 104}),
    "gemma4 without shared keys": ("gemma4-unshared", {"sliding_window": 400}),
}


def asked_of(lmm: FrozenLMM, question: str = "what is this ?", size: tuple[int, int] = (96, 60)) -> Asked:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return Asked(image=lmm.prepare(image), prompt=lmm.processor.first_turn(question, image.size))


def answered(asked: Asked, count: int = 12) -> LMMInput:
    """Teacher-forced: tokens that mean nothing, the second to fourth one object, the last another."""
    ids = list(range(40, 40 + count))
    return LMMInput(image=asked.image, prompt=asked.prompt, answer_ids=ids, object_tokens=[[1, 2, 3], [count - 1]])


def tensors(captured: Captured) -> list[torch.Tensor]:
    return [captured.attention, captured.hidden, captured.answer_hidden]


def require_reuse(lmm: FrozenLMM) -> bool:
    """Whether `speak` left a past; if so, that a capture on top of it is a fresh one, twice, and leaves no trace."""
    asked = asked_of(lmm)
    one = answered(asked)
    before = lmm.run([one])
    spoken = lmm.speak(asked, 8)
    assert [spoken.reply] == lmm.reply([asked], 8)
    assert all(map(torch.equal, tensors(before), tensors(lmm.run([one]))))
    if spoken.past is None:
        return False
    lmm.speak(
        asked_of(lmm, "look", (260, 140)), 2
    )  # of another user: Qwen's models remember the last image's positions
    seen: list[Any] = []
    handle = lmm.capture.decoder.register_forward_hook(lambda _m, _a, output: seen.append(output.last_hidden_state))
    first, second = lmm.run([one], past=spoken.past), lmm.run([one], past=spoken.past)
    handle.remove()
    assert [states.shape[1] for states in seen] == [12, 12]  # the answer, nothing else
    assert first.attention.shape == before.attention.shape and before.attention.max() > 1e-3
    for name, found, again, fresh in zip("ahs", tensors(first), tensors(second), tensors(before), strict=True):
        assert (found - fresh).abs().max() <= 1e-5 * (1 if name == "a" else max(1, fresh.abs().max()))
        assert torch.equal(found, again)
    assert all(map(torch.equal, tensors(before), tensors(lmm.run([one]))))
    assert [lmm.speak(asked, 8).reply] == [spoken.reply]
    return True


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_captured_on_top_of_its_prompt(name: str, tmp_path: Path) -> None:
    lmm = FrozenLMM(resolve_lmm(str(save_family(name, tmp_path))), dtype="float32")
    assert require_reuse(lmm) == (name not in FRESH)


@pytest.mark.parametrize("case", WIDE)
def test_a_window_that_nothing_has_left_is_no_hindrance(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = WIDE[case]
    monkeypatch.setitem(FAMILIES, "gemma4-unshared", lambda: gemma4(num_kv_shared_layers=0))
    folder = save_family(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    assert require_reuse(FrozenLMM(resolve_lmm(str(folder)), dtype="float32"))


ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 2.0},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_frequencies_that_follow_the_length_give_no_past(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the answer makes the input longer than the original context, a fresh pass turns the prompt's keys anew."""
    folder = save_family("llava-phi3" if kind == "longrope" else "llava", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    config["text_config"]["original_max_position_embeddings"] = 32  # Phi 3's place for it
    (folder / "config.json").write_text(json.dumps(config))
    lmm = FrozenLMM(resolve_lmm(str(folder)), dtype="float32")
    assert not require_reuse(lmm)
    if kind == "longrope":
        monkeypatch.setattr("stages.extract.past.CHANGING", ())
        one = answered(asked_of(lmm))
        assert len(one.prompt.ids) <= 32 < one.length
        spoken = lmm.speak(asked_of(lmm), 2)
        assert (lmm.run([one], past=spoken.past).attention - lmm.run([one]).attention).abs().max() > 1e-4


@pytest.fixture(scope="module")
def tiny() -> FrozenLMM:
    return FrozenLMM(resolve_lmm("tiny"))


def scene(lmm: FrozenLMM, index: int = 0, question: str = DEFAULT_PROMPT) -> Asked:
    image = Image.fromarray(make_scene("val", index).image)
    return Asked(image=lmm.prepare(image), prompt=lmm.processor.first_turn(question, image.size))


def test_a_past_of_another_prompt_is_refused(tiny: FrozenLMM) -> None:
    past = tiny.speak(scene(tiny), 4).past
    longer, other = scene(tiny, 0, "what is it , and where ?"), scene(tiny, 0, DEFAULT_PROMPT.replace("image", "scene"))
    assert past is not None
    for asked in (longer, other):
        with pytest.raises(ModelError, match="of another prompt") as caught:
            tiny.run([answered(asked)], past=past)
        assert "\n" not in str(caught.value)
    whole = answered(scene(tiny))
    inputs = {"input_ids": torch.tensor([whole.answer_ids])}
    shorter = replace(past, layers=tuple((k[:, :, 1:], v[:, :, 1:]) for k, v in past.layers))
    with pytest.raises(ModelError, match="attends to a cache"):  # keys that do not begin where the rows count from
        tiny.capture.run(inputs, [whole.rows], shorter)


@pytest.mark.parametrize("index", range(4))
def test_the_answer_is_streamed_as_it_is_said(index: int, tiny: FrozenLMM) -> None:
    """The pieces make the text; the first comes before the last tokens are generated."""
    passes: list[int] = []
    pieces: list[tuple[int, str]] = []
    handle = tiny.capture.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    spoken = tiny.speak(scene(tiny, index), on_text=lambda text: pieces.append((len(passes), text)))
    handle.remove()
    assert "".join(text for _, text in pieces).strip() == spoken.reply.text
    assert spoken.reply.finished and len(spoken.reply.text.split()) > 3
    assert len(pieces) > 3 and pieces[0][0] < len(passes) - 3 and all(text for _, text in pieces)
    assert [spoken.reply] == tiny.reply([scene(tiny, index)])


def test_what_listens_may_stop_the_answer(tiny: FrozenLMM) -> None:
    class Enough(ValueError):
        pass

    def stop(_text: str) -> None:
        raise Enough

    own = tiny.model.generation_config
    for own_settings in (False, True):
        with pytest.raises(Enough):
            tiny.speak(scene(tiny), on_text=stop, own_settings=own_settings)
    assert tiny.model.generation_config is own and not tiny.capture.decoder._forward_pre_hooks


@pytest.fixture
def sampling(tiny: FrozenLMM) -> Iterator[Any]:
    """A checkpoint that asks for sampling."""
    own = tiny.model.generation_config
    config = type(own)(**own.to_dict() | {"do_sample": True, "temperature": 3.0, "top_p": 0.95, "max_length": 7})
    tiny.model.generation_config = config
    yield config
    tiny.model.generation_config = own


def test_its_own_settings_are_sampled_by_seed_and_leave_the_callers_numbers(tiny: FrozenLMM, sampling: Any) -> None:
    asked = scene(tiny)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    said = [tiny.speak(asked, 24, own_settings=True, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert said[0].reply == said[1].reply != said[2].reply
    assert len(said[0].reply.ids) <= 24 and max(len(each.reply.ids) for each in said) > 7
    assert tiny.speak(asked, 24).reply == tiny.reply([asked], 24)[0] != said[0].reply
    assert tiny.model.generation_config is sampling and sampling.max_new_tokens is None
    assert said[0].past is not None  # a prompt's keys are the same whatever is said


def test_its_own_settings_are_transformers_own(tiny: FrozenLMM, sampling: Any) -> None:
    """Id for id what `generate` gives with the checkpoint's configuration; the image's token is never said."""
    asked = scene(tiny)
    for wished in (
        {"repetition_penalty": 1.5, "top_k": 5},
        {"do_sample": False, "num_beams": 3, "length_penalty": 0.3},
    ):
        for key, value in wished.items():
            setattr(sampling, key, value)
        spoken = tiny.speak(asked, 12, own_settings=True, seed=3)
        torch.manual_seed(3)
        output = tiny.model.generate(
            **tiny.processor.collate_prompts([asked]), max_length=None, max_new_tokens=12, pad_token_id=0,
            suppress_tokens=[tiny.processor.image_id],
        )  # fmt: skip
        ids = output[0, len(asked.prompt.ids) :].tolist()
        assert list(spoken.reply.ids) == (ids[: ids.index(2)] if 2 in ids else ids)


def test_beams_are_told_at_once_and_leave_no_past(tiny: FrozenLMM, sampling: Any) -> None:
    sampling.do_sample, sampling.num_beams, sampling.num_return_sequences = False, 3, 2
    pieces: list[str] = []
    spoken = tiny.speak(scene(tiny), 12, own_settings=True, on_text=pieces.append)
    assert pieces == [spoken.reply.text] and spoken.reply.ids and spoken.past is None


def test_settings_that_can_not_run_are_one_line(tiny: FrozenLMM, sampling: Any) -> None:
    sampling.do_sample, sampling.penalty_alpha, sampling.top_k = False, 0.6, 4  # contrastive search: code of the hub
    with pytest.raises(ModelError, match=r"its own settings.*generation_config\.json") as caught:
        tiny.speak(scene(tiny), 4, own_settings=True)
    assert "\n" not in str(caught.value)
    assert tiny.speak(scene(tiny), 4).reply.ids


def test_a_conversation_that_fills_the_context_is_one_line(tiny: FrozenLMM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scene(tiny)
    count = len(asked.prompt.ids)
    monkeypatch.setattr(tiny.processor, "context", count + 2)
    assert len(tiny.speak(asked).reply.ids) == 2 and not tiny.speak(asked).reply.finished
    monkeypatch.setattr(tiny.processor, "context", count)
    with pytest.raises(ModelError, match=f"are {count} tokens, and the LMM's context has {count}: ") as caught:
        tiny.speak(asked)
    assert "\n" not in str(caught.value)
