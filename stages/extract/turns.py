"""A conversation's questions: what an LMM would not read as text, and what is written between two answers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from manifests.errors import DatasetError, ModelError
from manifests.files import text_fault
from stages.extract.presets import LMMPreset

ANSWER: Final = "answer"  # stands for one where its last token may change what follows it
MARK: Final = "ANSWERqxz71"  # stands for one where a template is asked what follows it: no template's own words hold it
PLACEHOLDERS: Final = ("image_token", "boi_token", "video_token", "audio_token")
"""A processor's attributes: what it puts pictures and sounds in the place of, be it a token of the tokenizer or not."""


def require_plain(question: str, tokenizer: Any, processor: Any, image_id: int) -> None:
    """DatasetError for a text that would be more than text: a second image, an end of the answer, …"""
    if fault := text_fault(question):
        raise DatasetError(f"the prompt {fault}: shorten it, or type it anew")
    special = special_ids(tokenizer, image_id)
    ids = tokenizer.encode(question, add_special_tokens=False)
    found = [tokenizer.convert_ids_to_tokens(number) for number in ids if number in special]
    found += [
        token for name in PLACEHOLDERS if (token := str(getattr(processor, name, None) or "")) in question if token
    ]
    if found:
        raise DatasetError(f"the prompt holds {found[0]!r}, which is no text to this LMM: leave it out")


def special_ids(tokenizer: Any, image_id: int) -> frozenset[int]:
    """Ids of tokens that are no text; the one for what is not known is."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((special | set(tokenizer.all_special_ids) | {image_id}) - {tokenizer.unk_token_id})


def between(question: str, preset: LMMPreset, tokenizer: Any, processor: Any) -> list[int]:
    """The ids between an answer and the next: the end of its turn, the question, the beginning of the next turn.

    Raises ModelError for an LMM whose conversations have one question.
    """
    if not preset.template:
        text = _after_answer(question, processor)
    elif preset.further is not None:
        text = preset.further.format(prompt=question, eos=tokenizer.eos_token)
    else:
        raise ModelError(f"a conversation with {preset.source} has one question: ask each about the image anew")
    # together with an answer, for some tokenizers write a space before what a text begins with
    before, both = (tokenizer.encode(x, add_special_tokens=False) for x in (ANSWER, ANSWER + text))
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer.encode(text, add_special_tokens=False)


def _after_answer(question: str, processor: Any) -> str:
    """What the chat template writes after an answer that is followed by a question, up to the next answer."""
    from jinja2.exceptions import TemplateError

    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    last = {"role": "user", "content": [{"type": "text", "text": question}]}
    for answer in ([{"type": "text", "text": MARK}], MARK):  # some templates take answers as plain strings only
        messages = [first, {"role": "assistant", "content": answer}, last]
        with suppress(TemplateError, TypeError):
            written = processor.apply_chat_template(messages, add_generation_prompt=True)
            before, found, after = written.partition(MARK)
            if found and not before.endswith("'text': '") and question.strip() in after:  # not the list as it prints
                return after
    raise ModelError("this LMM's chat template writes no second question: ask each about the image anew")
