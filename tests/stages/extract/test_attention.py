"""Captured attention and hidden states against eager attention with output_attentions=True, and frozen logits.

Matrix: embedded tiny LMM and a random one with grouped-query attention x batch 1, batch 4 with right and left padding x
mean, max.
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.parity import inputs_of, kept_output
from manifests.errors import ModelError
from manifests.schema import DEFAULT_PROMPT, Piece, Sample
from stages.extract.attention import ACTIVE, IMPLEMENTATION, RowsPass, WordRows
from stages.extract.capture import AttentionCapture
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMInput
from tests.stages.extract.truth import eager_truth


@pytest.fixture(scope="module")
def tiny() -> FrozenLMM:
    return FrozenLMM(resolve_lmm("tiny"))


def samples(count: int, lmm: FrozenLMM) -> list[LMMInput]:
    """Narratives of scenes: texts of different lengths, several objects each."""
    found = inputs_of(lmm, count)
    assert count == 1 or len({len(s.answer_ids) for s in found}) > 1, "the batch needs padding to test it"
    return found


def make_sample(pieces: tuple[Piece, ...]) -> Sample:
    return Sample(
        sample_id="s", dataset="d", split="val", task="narrative", image_id="i", image_path="i.jpg", height=8, width=8,
        prompt=DEFAULT_PROMPT, pieces=pieces, objects=(),
    )  # fmt: skip


def grouped_query_llava() -> LlavaForConditionalGeneration:
    """Random weights, 4 query heads on 2 key heads, 3 layers, a 3 x 3 grid."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiny_lmm_equals_eager(batch: int, merge) -> None:
    lmm = FrozenLMM(resolve_lmm("tiny"), merge=merge)
    inputs, rows = lmm.collate(samples(batch, lmm), 300)
    captured = lmm.capture.run(inputs, rows)
    reference = LlavaForConditionalGeneration.from_pretrained(lmm.preset.source, dtype=torch.float32).eval()
    attention, hidden, answer = eager_truth(reference, inputs, rows, merge)
    assert (captured.attention - attention).abs().max() <= 1e-5
    assert attention.max() > 0.01  # the comparison is not one of zeros
    assert (captured.hidden - hidden).abs().max() <= 1e-5 * hidden.abs().max()
    assert (captured.answer_hidden - answer).abs().max() <= 1e-5 * answer.abs().max()


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("merge", ["mean", "max"])
def test_grouped_query_attention_and_both_paddings_equal_eager(side: str, merge) -> None:
    model = grouped_query_llava()
    generator = torch.Generator().manual_seed(1)
    lengths = [20, 20] if side == "none" else [20, 16]
    ids, mask, rows = torch.zeros(2, 20, dtype=torch.long), torch.zeros(2, 20, dtype=torch.long), []
    for b, length in enumerate(lengths):
        start = 20 - length if side == "left" else 0
        text = torch.randint(6, 64, (length,), generator=generator)
        text[1:10] = 5
        ids[b, start : start + length], mask[b, start : start + length] = text, 1
        words = [start + 11, start + 12]
        rows.append(
            WordRows(
                objects=[words, [start + 14]] if b else [[start + 13]],
                columns=range(start + 1, start + 10),
                answer=range(start + 10, start + length),
            )
        )
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
    attention, hidden, answer = eager_truth(grouped_query_llava(), inputs, rows, merge)
    captured = AttentionCapture(model, merge).run(inputs, rows)
    assert (captured.attention - attention).abs().max() <= 1e-5
    assert (captured.hidden - hidden).abs().max() <= 1e-5
    assert (captured.answer_hidden - answer).abs().max() <= 1e-5


def test_batch_of_four_equals_single_samples(tiny: FrozenLMM) -> None:
    batch = samples(4, tiny)
    together = tiny.run(batch)
    alone = [tiny.run([s]) for s in batch]
    assert (together.attention - torch.cat([a.attention for a in alone])).abs().max() <= 1e-5
    hidden = torch.cat([a.hidden for a in alone])
    assert (together.hidden - hidden).abs().max() <= 1e-5 * hidden.abs().max()


@pytest.mark.parametrize("batch", [1, 4])
def test_logits_are_bit_equal_to_plain_sdpa(tiny: FrozenLMM, batch: int) -> None:
    inputs, rows = tiny.collate(samples(batch, tiny), 300)
    with kept_output(tiny.capture.decoder) as outputs:
        tiny.capture.run(inputs, rows)
    plain = LlavaForConditionalGeneration.from_pretrained(
        tiny.preset.source, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        expected = plain(**inputs).logits
        assert torch.equal(tiny.model.lm_head(outputs[0].last_hidden_state), expected)  # of the pass that captured
        assert torch.equal(tiny.model(**inputs).logits, expected)  # and of one after it


def test_weights_stay_frozen(tiny: FrozenLMM) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    tiny.run(samples(1, tiny))
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_a_capture_that_ends_in_an_error_leaves_no_trace(tiny: FrozenLMM) -> None:
    inputs, rows = tiny.collate(samples(1, tiny), 300)
    with pytest.raises(ValueError, match="size"):
        tiny.capture.run(inputs | {"pixel_values": torch.zeros(1, 3, 8, 8)}, rows)
    assert tiny.capture.run(inputs, rows).attention.shape[0] == len(rows[0].objects)


def test_attention_sinks_equal_eager() -> None:
    """gpt-oss: a learned logit in every softmax, which SDPA has not; any positions can stand for the image."""
    config = GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=6, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, reference = GptOssForCausalLM(config).eval(), GptOssForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.layers[0].self_attn.sinks)
    reference.load_state_dict(model.state_dict())
    ids = torch.randint(1, 64, (2, 14))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 11:] = 0
    rows = [
        WordRows(objects=[[9], [10, 12]], columns=range(1, 9), answer=range(9, 13)),
        WordRows(objects=[[8, 10]], columns=range(1, 9), answer=range(8, 11)),
    ]
    plain = reference.model(**inputs).last_hidden_state
    attention, hidden, _ = eager_truth(reference, inputs, rows, "mean")
    captured = AttentionCapture(model).run(inputs, rows)
    assert (captured.attention - attention).abs().max() <= 1e-5
    assert (captured.hidden - hidden).abs().max() <= 1e-5
    assert 0.01 < attention[:, 0].sum(-1).max() < 0.99  # the sink takes a share
    assert torch.equal(model.model(**inputs).last_hidden_state, plain)


def test_cached_keys_are_refused(tiny: FrozenLMM) -> None:
    module = tiny.capture.attentions[0]
    _, rows = tiny.collate(samples(1, tiny), 300)
    query = torch.randn(1, 6, 8, 32)
    ACTIVE[module] = (0, RowsPass(rows, "mean"))
    try:
        with pytest.raises(ModelError, match="cache"):
            ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION](module, query[:, :, :1], query, query, None)
    finally:
        del ACTIVE[module]
