"""The presets against what their checkpoints publish: `published_configs.json`, every fact of it with its source.

A folder with the published keys alone, the rest left to transformers, must be recognised as the preset.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import isqrt, prod
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig, Molmo2ImageProcessor

from benchmarks.families import FAMILIES
from stages.extract.grids import grid_of, image_token_id
from stages.extract.presets import PRESETS, STORED, resolve_lmm

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published_configs.json").read_text())["presets"]
FOLLOWS = "follows the image"
IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id")
every_preset = pytest.mark.parametrize("name", sorted(PUBLISHED))


def facts(name: str) -> dict[str, Any]:
    """A preset's facts, those of all sources together; what was not found is left out."""
    found: dict[str, Any] = {"config": {}, "class_default": {}, "preprocessor": {}}
    for group in PUBLISHED[name]["facts"]:
        for section in group.keys() - {"confidence", "source"}:
            if isinstance(group[section], dict):
                found[section] |= {key: value for key, value in group[section].items() if value is not None}
            elif group[section] is not None:
                found[section] = group[section]
    return found


def decoder(name: str) -> dict[str, Any]:
    """The text decoder's keys: nested in config.json or, as Qwen2-VL has them, flat; or left out of it."""
    found = facts(name)
    nested = [found[section].get("text_config", {}) for section in ("class_default", "config")]
    return found["config"] | nested[0] | nested[1]


def hub_folder(folder: Path, name: str) -> Path:
    """The small files of a checkpoint with the pinned keys and no others."""
    found = facts(name)
    (folder / "config.json").write_text(json.dumps(found["config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(found["preprocessor"]))
    return folder


def test_every_preset_is_pinned_and_nothing_else() -> None:
    assert PUBLISHED.keys() == PRESETS.keys()


@every_preset
def test_every_fact_has_a_source(name: str) -> None:
    """A commit or an address; a copy of the file itself for 'config.json'; null for what was not found, only there."""
    for group in PUBLISHED[name]["facts"]:
        source, values = group["source"], [group[section] for section in group.keys() - {"confidence", "source"}]
        assert values and source
        leaves = [leaf for value in values for leaf in (value.values() if isinstance(value, dict) else [value])]
        if group["confidence"] == "not found":
            assert leaves == [None]
            continue
        assert None not in leaves
        places = (" @", "https://", "transformers 5.", "(not located)", "derived: ", "the report above")
        assert any(place in source for place in places)
        copy = " @" in source and source.split(" (")[0].endswith((".json", ".jinja"))
        assert copy if group["confidence"] == "config.json" else group["confidence"] == "secondary"


@every_preset
def test_the_preset_says_what_is_published(name: str) -> None:
    preset, found, text = PRESETS[name], facts(name), decoder(name)
    assert (preset.source, preset.family) == (PUBLISHED[name]["checkpoint"], found["config"]["model_type"])
    shapes = [text[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")]
    assert [preset.layers, preset.heads, preset.width] == shapes
    kinds = text.get("layer_types", ["full_attention"] * text["num_hidden_layers"])
    assert (len(kinds), kinds.count("full_attention")) == (preset.layers, preset.attention_layers)
    tokens = found["tokens_per_view"]
    assert preset.grid == (STORED if tokens == FOLLOWS else (isqrt(tokens), tokens / isqrt(tokens)))
    assert preset.template == found.get("prompt", "")


@every_preset
def test_a_folder_with_the_published_keys_is_the_preset(name: str, tmp_path: Path) -> None:
    folder, found = str(hub_folder(tmp_path, name)), facts(name)
    assert resolve_lmm(folder) == replace(PRESETS[name], name=folder, source=folder)
    config = AutoConfig.from_pretrained(folder)
    pinned = found["config"] | found["class_default"]
    assert {image_token_id(config)} == {pinned[key] for key in IMAGE_TOKENS if key in pinned}
    text = config.get_text_config(decoder=True)
    for key, value in found["class_default"].get("text_config", {}).items():
        assert getattr(text, key) == value, key
    assert text.num_key_value_heads == decoder(name)["num_key_value_heads"]
    cells = grid_of(config).cells
    assert found["tokens_per_view"] == (prod(cells(config)) if cells else FOLLOWS)


def test_molmos_coarse_view_is_its_image_processors() -> None:
    """27 patches a side, pooled two by two: 14 cells and not 13."""
    made = Molmo2ImageProcessor()(Image.new("RGB", (300, 200)), return_tensors="pt")
    assert tuple(made["image_grids"][0, :2].tolist()) == PRESETS["molmo2"].grid


def test_paligemmas_template_gives_its_processors_own_prompt() -> None:
    """It has no chat template: to a bare text its processor adds the image, <bos> and a newline."""
    _, processor = FAMILIES["paligemma2"]()
    image, template = Image.new("RGB", (56, 56)), PRESETS["paligemma2"].template
    text = template.format(image=processor.image_token, prompt="a red circle")
    own, ours = (processor(text=[t], images=[[image]])["input_ids"] for t in ("a red circle", text))
    assert own == ours
