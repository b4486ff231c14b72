"""Tokens, prompts and images as the LMM gets them, against Hugging Face's own processor and plain loops."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from manifests.errors import ModelError
from manifests.schema import DEFAULT_PROMPT, Piece
from stages.extract.checkpoint import weights_identity
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import STORED, resolve_lmm
from stages.extract.processor import LMMProcessor
from tests.stages.extract.test_attention import make_sample

TINY = resolve_lmm("tiny")
TOKENISER = LMMProcessor(TINY)


def test_prompt_equals_the_processors() -> None:
    processor = AutoProcessor.from_pretrained(TINY.source)
    image = Image.new("RGB", (96, 96))
    expected = processor(text=TINY.template.format(prompt=DEFAULT_PROMPT), images=image)["input_ids"]
    assert TOKENISER.prompt(DEFAULT_PROMPT, (96, 96)).ids == list(np.asarray(expected).reshape(-1))


def test_square_images_equal_the_processors() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    expected = AutoProcessor.from_pretrained(TINY.source).image_processor(Image.fromarray(pixels), return_tensors="pt")
    lmm = FrozenLMM(TINY)
    from stages.extract.processor import LMMInput

    sample = LMMInput(
        image=lmm.prepare(Image.fromarray(pixels)),
        prompt=TOKENISER.prompt("x", (96, 96)),
        answer_ids=[9],
        object_tokens=[[0]],
    )
    inputs, _ = lmm.collate([sample], 200)
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


words = st.lists(st.text(alphabet="abcdefgäö,.’x", min_size=1, max_size=9), min_size=1, max_size=4).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=6))
def test_pieces_are_tokenised_alone_and_words_are_numbered(texts: list[tuple[str, bool]]) -> None:
    pieces = tuple(Piece(text=t, object=0 if grounded else None) for t, grounded in texts)
    answer = TOKENISER.answer(make_sample(pieces))
    ids, objects, spoken = [], [], []
    for text, grounded in texts:  # plain loop: every word of every piece on its own (byte-level BPE splits at spaces)
        for number, word in enumerate(text.split(), start=len(spoken)):
            found = TOKENISER.tokenizer.encode(word, add_special_tokens=False)
            ids += found
            objects += [0 if grounded else -1] * len(found)
            assert [w for w, i in zip(answer.words, range(len(answer.words)), strict=True) if w == number]
        spoken += text.split()
    assert answer.ids == ids
    assert answer.objects == objects
    for number, word in enumerate(spoken):
        own = [i for i, w in zip(answer.ids, answer.words, strict=True) if w == number]
        assert TOKENISER.tokenizer.decode(own).strip() == word


def test_identity_is_the_weights_not_the_place(tmp_path) -> None:
    copy = shutil.copytree(TINY.source, tmp_path / "copy")
    assert weights_identity(str(copy)) == weights_identity(TINY.source)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert weights_identity(str(copy)) != weights_identity(TINY.source)


def test_missing_weights_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"hf download llava-hf/llava-1\.5-7b-hf --local-dir DIR.*--lmm DIR"):
        FrozenLMM(resolve_lmm("llava"))


def test_a_preset_of_another_grid_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has grid \(12, 12\), the preset says \(13, 13\)$"):
        FrozenLMM(replace(TINY, grid=(13, 13)))
    FrozenLMM(replace(TINY, grid=STORED))  # as --store-grid 64 has it


@pytest.mark.parametrize("damage", ["no tokenizer", "another tokenizer", "truncated weights"])
def test_a_damaged_folder_is_one_line_with_the_folder(tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(TINY.source, tmp_path / "copy")
    if damage == "no tokenizer":
        for path in copy.glob("tokenizer*"):
            path.unlink()
    elif damage == "another tokenizer":
        (copy / "tokenizer.json").write_text('{"a": 1}')
    else:
        with (copy / "model.safetensors").open("r+b") as file:
            file.truncate(1_000_000)
    with pytest.raises(ModelError, match=r"copy can not be loaded \(.*download the folder again") as caught:
        (FrozenLMM if "weights" in damage else LMMProcessor)(replace(TINY, source=str(copy)))
    assert "\n" not in str(caught.value)
