"""`train-head --init-from`: a stored head, one of the Hub, a published checkpoint; where the weights are from stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.priors import Priors
from manifests.errors import PipelineError
from pipeline.head_options import build, start_from
from pipeline.train_head import TrainHead
from stages.extract.sam import SAM_PRESETS, load_sam, save_sam
from stages.train_head.heads.checkpoint import save_head
from stages.train_head.heads.published import to_published
from tests.hub import server
from tests.stages.train_head.heads.batches import SAM, SHAPE
from tests.stages.train_head.heads.known_heads import PRIORS, make_head
from tests.stages.train_head.heads.published import published_weights


def test_a_stored_head_gives_its_weights_and_provenance(tmp_path: Path) -> None:
    old = make_head(1)
    old.record["provenance"] = {"licence": "non-commercial"}
    save_head(old, tmp_path / "old")
    with server(tmp_path / "downloads"):
        old.push_to_hub("ann/old")
        for where in (str(tmp_path / "old"), "hf://ann/old"):
            head = make_head(2)
            head.record = {}
            start_from(head, TrainHead(init_from=where), PRIORS)
            assert all(torch.equal(a, b) for a, b in zip(head.parameters(), old.parameters(), strict=True))
            assert head.record == {"provenance": {"licence": "non-commercial"}}  # and nothing of another training


def test_a_published_checkpoint_too(tmp_path: Path) -> None:
    sizes = {"channels": SHAPE.channels, "layers": SHAPE.layers, "width": SHAPE.width}
    weights = published_weights(**sizes, base=4, sam=SAM)
    torch.save({"state_dict": weights}, tmp_path / "flmm.pth")
    head = make_head(input_size=64)
    start_from(head, TrainHead(init_from=str(tmp_path / "flmm.pth")), PRIORS)
    assert all(torch.equal(value, weights[name]) for name, value in to_published(head).items())
    assert head.record["provenance"]["source"] == "flmm.pth"


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no such folder"):
        start_from(make_head(), TrainHead(init_from=str(tmp_path / "nowhere")), PRIORS)


def test_weights_for_other_priors_or_maps_are_refused(tmp_path: Path) -> None:
    save_head(make_head(), tmp_path / "old")
    args = TrainHead(init_from=str(tmp_path / "old"))
    with pytest.raises(PipelineError, match='merge: the head has "mean", the cache "max"'):
        start_from(make_head(), args, PRIORS | {"merge": "max"})
    other = make_head()
    other.shape = replace(SHAPE, maps=(9, 8, 7, 6, 5, 4))
    with pytest.raises(PipelineError, match="looks at other maps"):
        start_from(other, args, PRIORS)


def test_another_sam_than_the_caches_is_refused(small_cache: Path, tmp_path: Path) -> None:
    sam = load_sam("tiny")
    with torch.no_grad():
        next(sam.mask_decoder.parameters()).add_(1)
    save_sam(sam, SAM_PRESETS["tiny"], tmp_path)
    args = TrainHead(cache=str(small_cache), sam_checkpoint=tmp_path / "model.safetensors")
    with pytest.raises(PipelineError, match="is not the SAM whose embeddings the cache holds"):
        build(args, Priors.open(small_cache))
