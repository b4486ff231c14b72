"""Names and folders that `--lmm` does not know, or that hold nothing, say so in one line with the cure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.families import save_family
from manifests.errors import ModelError
from stages.extract import presets

assert presets.PRESETS["llava"].square is not None
LLAVA = presets.PRESETS["llava"].square


def test_missing_embedded_weights_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "TINY", tmp_path)
    with pytest.raises(ModelError, match=r"weights are not in .*python -m stages\.extract\.tiny\.train_lmm --out"):
        presets.resolve_lmm("tiny")


def test_a_folder_without_a_checkpoint_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint: config\.json is missing"):
        presets.resolve_lmm(str(tmp_path))
    with pytest.raises(ModelError, match=r"known are tiny, aya-vision, .*, llava, .* or a Hugging Face id"):
        presets.resolve_lmm("no-such-lmm")


def test_the_llava_preset_has_the_shapes_of_the_paper() -> None:
    llava = presets.resolve_lmm("llava")
    assert (llava.grid, llava.channels, llava.width, llava.sam) == ((24, 24), 1024, 4096, "vit_l")


def test_vipllava_is_prepared_as_llava_and_asked_in_its_own_words(tmp_path: Path) -> None:
    found = presets.resolve_lmm(str(save_family("vipllava", tmp_path)))
    assert found.square is not None and found.square.cells == 4
    assert found.template.endswith("###Human: <image>\n{prompt}###Assistant:")


def hub_folder(folder: Path, **text: int) -> Path:
    """The small files of llava-hf/llava-1.5-7b-hf as `hf download` brings them, `text` changed."""
    text_config = {"model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064} | text
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "num_attention_heads": 16, "image_size": 336}
    vision |= {"num_hidden_layers": 24, "patch_size": 14}
    files = {
        "config": {
            "model_type": "llava",
            "torch_dtype": "float16",
            "text_config": text_config,
            "vision_config": vision,
        },
        "processor_config": {"image_token": "<image>", "patch_size": 14, "processor_class": "LlavaProcessor"},
        "preprocessor_config": {"image_mean": list(LLAVA.mean), "image_std": list(LLAVA.std), "do_normalize": True},
    }
    folder.mkdir()
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def test_a_downloaded_llava_is_the_preset(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "llava")
    assert presets.resolve_lmm(str(folder)) == replace(presets.PRESETS["llava"], name=str(folder), source=str(folder))
    small = presets.resolve_lmm(str(hub_folder(tmp_path / "small", num_hidden_layers=2)))
    assert (small.layers, small.dtype, small.sam) == (2, "float16", "vit_l")
    with pytest.raises(
        ModelError, match=r"the configuration in .* can not be loaded"
    ) as caught:  # 30 heads do not divide the width
        presets.resolve_lmm(str(hub_folder(tmp_path / "wrong", num_attention_heads=30)))
    assert "\n" not in str(caught.value)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        ModelError, match=r"neither processor_config\.json nor preprocessor_config\.json has image_mean"
    ):
        presets.resolve_lmm(str(folder))
