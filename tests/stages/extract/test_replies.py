"""Generated answers: the words of ids against plain decoding, greedy generation against teacher-forced passes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText

from benchmarks.families import FAMILIES, save_family
from manifests.scenes.world import make_scene
from manifests.schema import DEFAULT_PROMPT
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import Asked, LMMInput, LMMProcessor
from stages.extract.repair import repaired
from stages.extract.replies import reply_of, words_of

TINY = resolve_lmm("tiny")
TOKENISER = LMMProcessor(TINY).tokenizer
SIZES = ((96, 60), (64, 112), (112, 112), (260, 140))  # width, height
QUESTIONS = ("what is this ?", "please name the red thing that is left of the blue ring", "look", "the grass ?")

texts = st.text(alphabet="abcdefgäö,.’x \n語😀", min_size=1, max_size=40).filter(
    lambda text: text.strip() == text != ""
)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_words_are_what_the_ids_spell(text: str) -> None:
    ids = TOKENISER.encode(text, add_special_tokens=False)
    found, words = words_of(TOKENISER, ids)
    assert found == text
    assert sorted(set(words)) == list(range(len(text.split()))) and words == sorted(words)
    for number, word in enumerate(text.split()):  # a word's own tokens alone spell it
        assert TOKENISER.decode([i for i, w in zip(ids, words, strict=True) if w == number]).strip() == word


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 479), max_size=30))
def test_any_ids_have_words_without_a_gap(ids: list[int]) -> None:
    """Bytes that are no text, special tokens, nothing but spaces."""
    reply = reply_of(TOKENISER, ids, (2,))
    said = ids[: ids.index(2)] if 2 in ids else ids
    assert reply.finished == (2 in ids)
    assert reply.ids in ((), tuple(said))
    assert sorted(set(reply.words)) == list(range(len(reply.text.split()))) and len(reply.words) == len(reply.ids)
    assert bool(reply.ids) == bool(TOKENISER.decode(said, skip_special_tokens=True).strip())
    assert "<pad>" not in reply.text and "<image>" not in reply.text


def test_a_word_without_a_token_of_its_own_is_part_of_the_next() -> None:
    class Spelling:
        """A tokenizer that has a token for each of these."""

        def decode(self, ids: list[int], **_options: Any) -> str:
            return "".join(["a", "b c d", " e", "f g", " h"][i] for i in ids)

    assert words_of(Spelling(), [0, 1, 2, 3, 4]) == ("ab cd ef g h", [0, 1, 2, 3, 4])


def asked_of(lmm: FrozenLMM) -> list[Asked]:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    return [
        Asked(image=lmm.prepare(image), prompt=lmm.processor.prompt(question, image.size))
        for image, question in zip(images, QUESTIONS, strict=True)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_with_its_likeliest_tokens(name: str, tmp_path: Path, caplog: Any) -> None:
    """Batched and left-padded as alone; each token is the likeliest one of a teacher-forced pass, as captures run it.

    The checkpoint asks for sampling, penalties and beams: these have no say, and nothing complains.
    """
    lmm = FrozenLMM(resolve_lmm(str(save_family(name, tmp_path))), dtype="float32")
    config = lmm.model.generation_config
    wished = {"do_sample": True, "temperature": 0.2, "top_k": 3, "top_p": 0.5, "num_beams": 3, "max_length": 7}
    for key, value in (wished | {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2}).items():
        setattr(config, key, value)
    asked = asked_of(lmm)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error", UserWarning)
        answers = lmm.generate(asked, 8)
    assert not [record for record in caplog.records if record.name.startswith("transformers.generation")]
    assert lmm.model.generation_config is config and config.num_beams == 3
    assert lmm.reply(asked, 8) == [reply_of(lmm.processor.tokenizer, ids, lmm.ends) for ids in answers]
    for each, ids in zip(asked, answers, strict=True):
        said = ids[: ids.index(2) + 1] if 2 in ids else ids
        (alone,) = lmm.generate([each], 8)
        assert alone[: len(said)] == said and len(ids) == 8
        forced = LMMInput(image=each.image, prompt=each.prompt, answer_ids=said, object_tokens=[[0]])
        inputs, _ = lmm.collate([forced], forced.length)
        with torch.no_grad():
            logits = lmm.model(**inputs, use_cache=False).logits[0]
        logits[:, lmm.processor.image_id] = -torch.inf
        start = len(each.prompt.ids) - 1
        assert logits[start : start + len(said)].argmax(-1).tolist() == said


def scene_questions(lmm: FrozenLMM, count: int) -> list[Asked]:
    found = []
    for index in range(count):
        image = Image.fromarray(make_scene("val", index).image)
        found.append(Asked(image=lmm.prepare(image), prompt=lmm.processor.prompt(DEFAULT_PROMPT, image.size)))
    return found


def test_the_capturing_model_says_what_a_plain_one_says() -> None:
    """Token for token what `generate` of the checkpoint says that was loaded apart, with its own attention."""
    lmm = FrozenLMM(TINY)
    auto: Any = AutoModelForImageTextToText
    plain = repaired(auto.from_pretrained(TINY.source, dtype=torch.float32).eval())
    assert plain.config.text_config._attn_implementation != lmm.capture.config._attn_implementation
    asked = scene_questions(lmm, 6)
    replies = lmm.reply(asked)
    for each, reply in zip(asked, replies, strict=True):
        inputs = lmm.processor.collate_prompts([each])
        ids = plain.generate(**inputs, do_sample=False, max_new_tokens=256)[0, len(each.prompt.ids) :].tolist()
        assert ids == [*reply.ids, 2] and reply.finished
        assert reply.text == TOKENISER.decode(ids, skip_special_tokens=True).strip()
    assert len({reply.text for reply in replies}) == 6


def test_answers_end_with_the_context() -> None:
    lmm = FrozenLMM(TINY)
    asked = scene_questions(lmm, 2)
    whole = lmm.reply(asked)
    lmm.processor.context = len(asked[0].prompt.ids) + 9
    for cut, reply in zip(lmm.reply(asked), whole, strict=True):
        assert cut.ids == reply.ids[:9] and not cut.finished
