"""Which models belong together: the head says which LMM and SAM it was trained with, and how these were run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache.identity import plain
from manifests.errors import ModelError, PipelineError
from stages.extract.presets import LMMPreset, resolve_lmm
from stages.extract.stage import files_of, lmm_identity, priors_identity, sam_identity
from stages.train_head.heads import head_class as class_of
from stages.train_head.heads.base import Head
from stages.train_head.heads.checkpoint import load_head, require_same_priors
from stages.train_head.heads.hub import fetch_head


def head_of(where: str, head_class: str | None) -> Head:
    """The stored head. ModelError: there is none, or it does not say which priors it is for."""
    found = load_head(fetch_head(where), class_of(head_class) if head_class else None)
    if found.priors is None:
        raise ModelError(f"{where} does not say which priors it is for; train it again, or import it for a cache")
    return found


def checked(head: Head, where: str, lmm: str, sam_checkpoint: Path | None, trust_remote_code: bool) -> LMMPreset:
    """The LMM `lmm`, to be run as it was for the head of `where`.

    IdentityMismatch, naming the fields, where it or SAM is not the one that the head was trained with. A head that
    does not refine needs no SAM.
    """
    trained = head.priors or {}
    preset = _as_trained(resolve_lmm(lmm, trust_remote_code=trust_remote_code), trained["lmm"])
    images = trained["images"]
    if head.refined_size is not None:
        images = images | {"identity": sam_identity(images["identity"]["sam"]["name"], sam_checkpoint)}
    of_lmm = lmm_identity(preset, trained["lmm"]["dtype"], files_of(preset))
    found = priors_identity(of_lmm, trained["merge"], images)
    found |= {"derived": trained["derived"]} if "derived" in trained else {}
    cure = "give the LMM and SAM that it was trained with"
    require_same_priors(head, plain(found), where, what=f"the LMM {lmm}", cure=cure)
    return preset


def _as_trained(preset: LMMPreset, trained: dict[str, Any]) -> LMMPreset:
    """The LMM run as the head's priors were made. trained: the LMM's share of their identity."""
    preset = replace(preset, attention=trained.get("attention", preset.attention))
    if preset.square or "views" not in trained:
        return preset  # of another kind: what differs is said by the comparison of the identities
    return replace(preset.with_views(trained["views"]), grid=tuple(trained["grid"]))


def device_of(device: str, gpus: int) -> str:
    """cuda or cpu for auto. PipelineError for a GPU, or so many, that torch does not see."""
    there = torch.cuda.device_count()
    device = ("cuda" if there else "cpu") if device == "auto" else device
    if device != "cpu" and not (device.startswith("cuda") and there):
        raise PipelineError(f"device {device}: torch sees no such device here; give cpu, or auto")
    if not 1 <= gpus <= (max(1, there) if device == "cuda" else 1):
        raise PipelineError(
            f"--gpus {gpus}: must be between 1 and the number of GPUs here, {there if device != 'cpu' else 0}"
        )
    return device
