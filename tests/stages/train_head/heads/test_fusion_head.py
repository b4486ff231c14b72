from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.extract.sam import build_sam
from stages.train_head.heads.base import HeadBatch
from stages.train_head.heads.fusion_head import FusionConfig, FusionHead
from tests.stages.train_head.heads.batches import SAM, SAMPLE, SHAPE, TOKENS, make_batch

CONFIG = FusionConfig(input_size=16, width=8, sam=SAM)


def make_head(config: FusionConfig = CONFIG) -> FusionHead:
    torch.manual_seed(0)
    return FusionHead(SHAPE, config).eval()


def test_untrained_sam_is_prompted_as_by_the_head_of_the_paper() -> None:
    """The features' prompt is 0 at first: SAM gets mask, box and words, and nothing that it was not trained with."""
    head, batch = make_head(), make_batch()
    output = head(batch)
    torch.testing.assert_close(output.refined, head.refiner(output.coarse, batch), atol=1e-6, rtol=1e-6)
    sam = build_sam(SAM)
    head.start_from(sam)
    assert all(
        torch.equal(a, b)
        for a, b in zip(head.refiner.mask_decoder.parameters(), sam.mask_decoder.parameters(), strict=True)
    )


@pytest.mark.parametrize("what", ["attention", "image", "words"])
def test_the_coarse_mask_sees_all_three(what: str) -> None:
    """A change for one object (or its image) alone changes that object's coarse mask alone."""
    head, batch = make_head(), make_batch()
    before = head(batch).coarse
    changed = {
        "attention": lambda: replace(batch, attention=_with(batch.attention, 2, batch.attention[3])),
        "image": lambda: replace(batch, embeddings=_with(batch.embeddings, 1, -batch.embeddings[1])),
        "words": lambda: replace(
            batch, hidden=torch.where((batch.hidden_object == 2)[:, None, None], -batch.hidden, batch.hidden)
        ),
    }[what]()
    moved = (head(changed).coarse - before).abs().amax((-2, -1)) > 1e-4
    assert moved.tolist() == ([s == 1 for s in SAMPLE] if what == "image" else [k == 2 for k in range(len(SAMPLE))])


def _with(values: torch.Tensor | None, row: int, new: torch.Tensor) -> torch.Tensor:
    assert values is not None
    changed = values.clone()
    changed[row] = new
    return changed


def test_the_scale_of_attention_does_not_matter() -> None:
    head, batch = make_head(), make_batch()
    scaled = replace(batch, attention=batch.attention * (torch.rand(SHAPE.channels)[:, None, None] + 0.1))
    torch.testing.assert_close(head(scaled).coarse, head(batch).coarse, atol=1e-4, rtol=1e-4)


def test_no_object_has_words() -> None:
    batch = make_batch()
    silent: HeadBatch = replace(batch, hidden=batch.hidden[:0], hidden_object=batch.hidden_object[:0])
    assert TOKENS[4] == 0
    head = make_head()
    torch.testing.assert_close(head(silent).refined[4], head(batch).refined[4], atol=2e-5, rtol=1e-5)


def test_it_learns_a_mask_of_each_object_by_heart() -> None:
    head, batch = make_head().train(), make_batch()
    yy, xx = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    truth = torch.stack([((yy - 4 - k) ** 2 + (xx - 11 + k) ** 2 < 12).float() for k in range(len(SAMPLE))])
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(batch).coarse, truth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("values", [{"input_size": -1}, {"width": 0}, {"width": 12}])
def test_impossible_configs_name_the_field(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        FusionConfig(**values)  # type: ignore[arg-type]
