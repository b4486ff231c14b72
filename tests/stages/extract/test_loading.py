"""How an LMM is loaded: over several devices, with attention of one's choice, and never with code that came with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.families import save_family
from benchmarks.family_inputs import family_inputs
from manifests.errors import ModelError
from stages.extract.checkpoint import weights_identity
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMProcessor

GOES_AROUND = """
import torch
from transformers import LlavaForConditionalGeneration

class OwnLlava(LlavaForConditionalGeneration):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.language_model.layers:
            layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
"""

FOREIGN = "someone/else--modeling_own.OwnLlava"
PARTS = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies remote code to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def with_code(folder: Path, **config: object) -> Path:
    """The tiny LLaVA with a file of Python code that its configuration names."""
    save_family("llava", folder)
    (folder / "modeling_own.py").write_text(GOES_AROUND)
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForImageTextToText": "modeling_own.OwnLlava"}
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def test_layers_on_several_devices_give_the_same_rows(tmp_path: Path) -> None:
    """accelerate moves a layer's weights and inputs to its device; here one layer's weights come from the disk."""
    folder = save_family("llava", tmp_path / "lmm")
    preset = resolve_lmm(str(folder))
    whole = FrozenLMM(preset)
    places = ["vision_tower", "multi_modal_projector", *(f"language_model.{name}" for name in PARTS)]
    spread: dict[str, str | int] = {"lm_head": "cpu"} | {f"model.{place}": "cpu" for place in places}
    spread["model.language_model.layers.1"] = "disk"
    parts = FrozenLMM(preset, device_map=spread)
    assert parts.model.hf_device_map == spread
    assert parts.capture.layers[1].mlp.up_proj.weight.device.type == "meta"
    inputs, rows = family_inputs(folder, whole.model.config, "right")
    one, other = whole.capture.run(inputs, rows), parts.capture.run(inputs, rows)
    parts.synchronise()
    for name in ("attention", "hidden", "answer_hidden"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_layers_on_two_gpus_give_the_same_rows(tmp_path: Path) -> None:
    folder = save_family("llava", tmp_path / "lmm")
    preset = resolve_lmm(str(folder))
    one, two = FrozenLMM(preset, "cuda:0"), FrozenLMM(preset, "cuda:0", gpus=2)
    inputs, rows = family_inputs(folder, one.model.config, "right")
    inputs = {name: value.to("cuda:0") for name, value in inputs.items()}
    assert torch.equal(one.capture.run(inputs, rows).attention, two.capture.run(inputs, rows).attention.to("cuda:0"))


def test_code_that_came_with_a_checkpoint_does_not_run_unless_asked_for(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "lmm")
    assert type(FrozenLMM(resolve_lmm(str(folder))).model).__name__ == "LlavaForConditionalGeneration"
    trusted = FrozenLMM(resolve_lmm(str(folder), trust_remote_code=True))
    assert type(trusted.model).__name__ == "OwnLlava"
    with pytest.raises(ModelError, match=r"OwnLlava goes around transformers' attention interface: 0 of its 3 layers"):
        trusted.capture.run(*family_inputs(folder, trusted.model.config, "right"))


def test_a_checkpoint_that_needs_its_own_code_says_what_that_means(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForImageTextToText": "modeling_own.OwnLlava"}
    folder = with_code(tmp_path / "lmm", model_type="own_llava", auto_map=auto_map)
    with pytest.raises(ModelError, match="if you trust it give --trust-remote-code") as caught:
        resolve_lmm(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForImageTextToText": FOREIGN}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": FOREIGN}}}),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": FOREIGN}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, FOREIGN]}}),
    ],
)
def test_code_of_other_repositories_is_refused(tmp_path: Path, file: str, values: dict[str, object]) -> None:
    folder = with_code(tmp_path / "lmm")
    known = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(known | values))
    with pytest.raises(ModelError, match=r"code of another repository \(someone/else--modeling_own\.OwnLlava\)"):
        FrozenLMM(resolve_lmm(str(folder), trust_remote_code=True))


def test_code_that_runs_is_part_of_what_the_lmm_is(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "lmm")
    (folder / "parts").mkdir()
    (folder / "parts" / "more.py").write_text("x = 1")
    assert {"modeling_own.py", "parts/more.py"} <= weights_identity(str(folder), code=True).keys()
    assert not [name for name in weights_identity(str(folder)) if name.endswith(".py")]


def test_a_processor_that_needs_its_own_code_says_so(tmp_path: Path) -> None:
    folder = save_family("qwen2-vl", tmp_path / "lmm")
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "OwnProcessor", "auto_map": {"AutoProcessor": "processing_own.OwnProcessor"}})
    )
    with pytest.raises(ModelError, match=r"processor in .* give --trust-remote-code"):
        LMMProcessor(resolve_lmm(str(folder)))


@pytest.mark.parametrize("where", [None, "text_config"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("asked", ["eager", "flash_attention_2"])
def test_a_checkpoint_does_not_choose_the_attention(tmp_path: Path, asked: str, key: str, where: str | None) -> None:
    folder = save_family("llava", tmp_path / "lmm")
    values = json.loads((folder / "config.json").read_text())
    (values[where] if where else values)[key] = asked
    (folder / "config.json").write_text(json.dumps(values))
    preset = resolve_lmm(str(folder))
    for attention in ("auto", "sdpa"):
        lmm = FrozenLMM(replace(preset, attention=attention))
        assert lmm.capture.baseline == lmm.model.config.vision_config._attn_implementation == "sdpa"


def test_the_attention_of_the_frozen_model_can_be_chosen(tmp_path: Path) -> None:
    preset = resolve_lmm(str(save_family("paligemma2", tmp_path / "lmm")))
    assert FrozenLMM(preset).capture.baseline == "eager"  # soft-capped scores: transformers does not offer sdpa
    assert FrozenLMM(replace(resolve_lmm("tiny"), attention="eager")).capture.baseline == "eager"
    with pytest.raises(ModelError, match=r"--attention sdpp can not run here .*: leave it out"):
        FrozenLMM(replace(preset, attention="sdpp"))
