"""Heads that the authors of F-LMM published (`.pth`): read, check, load into a `GroundingHead`; and the way back.

The official code and weights are licensed for non-commercial use. None of them is part of this program: the user's own
file is read, and its licence and origin stay with the converted head (the record that `load_published` returns).

Letters: C attention maps, M layers, d the LMM's width, W the U-Net's base width, Ce SAM's channels.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import ModelError
from stages.extract.sam import SAM_PRESETS, SamConfig
from stages.train_head.heads.base import Head, PriorShape
from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead

CONVERTER: Final = 1
"""Version of this conversion, part of every record."""
LICENCE: Final = "non-commercial, as the F-LMM repository states"
PAPER: Final = "arXiv 2406.05821"
UNTRAINED: Final = "untrained: the published heads have none, its keyword scores mean nothing before training"
PARTS: Final = {  # our names begin so -> theirs do
    "mask_head.": "mask_head.",
    "refiner.text_layer_weights": "text_layer_weights",
    "refiner.text_proj.": "text_proj.",
    "refiner.prompt_encoder.": "sam.model.prompt_encoder.",
    "refiner.mask_decoder.": "sam.model.mask_decoder.",
}
SELECTOR: Final = "selector."
FILTERS: Final = "mask_head.encoder.0.0.convs.0.conv.weight"
SAM: Final = "sam.model."


@dataclass(kw_only=True, slots=True, frozen=True)
class PublishedShape:
    """The sizes of a published head, as far as its tensors tell them."""

    channels: int
    """C, attention maps of an object."""
    layers: int
    """M, layers of hidden states."""
    width: int
    """d, width of hidden states."""
    base_width: int
    """W, channels of the U-Net's first level."""
    sam_channels: int
    """Ce, channels of SAM's embedding and prompts."""
    sam_mlp: int
    """Hidden width of the MLP in SAM's mask decoder."""
    sam_mask_channels: int
    """Hidden channels that embed SAM's mask prompt."""
    input_size: int = 64
    """Side that maps are upsampled to: in no tensor, the same in all published heads."""

    @property
    def sams(self) -> list[str]:
        """Which SAMs have such a decoder. The official three share its sizes; the published heads are of vit_l."""
        mine = (self.sam_channels, self.sam_mlp, self.sam_mask_channels)
        return [name for name, sam in SAM_PRESETS.items() if _decoder_sizes(sam) == mine]


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, bare or below "state_dict", by their names; `.safetensors` or torch's format.

    No code of the file is run; where torch's format allows, its tensors stay on disk until they are copied.
    ModelError: no such file, no checkpoint, one that only code could unpickle, or one that holds other things.
    """
    if not file.is_file():
        raise ModelError(f"there is no checkpoint {file}; give the path of the published head's file")
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (
        Exception
    ) as error:  # what a file of any other kind makes zip, pickle and safetensors raise has no common base
        raise _unreadable(file, error) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{file} holds no state dict, neither bare nor below 'state_dict': not a published head")
    others = [f"{name!r} ({type(value).__name__})" for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{file} holds no state dict of tensors; other things in it: {_few(others)}")
    return found


def _unreadable(file: Path, error: Exception) -> ModelError:
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return ModelError(
            f"{file} is refused: code would have to run to unpickle it ({refused[1]}); take a file that holds tensors "
            "only, or if you trust its author save those alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'tensors.pth')"
        )
    lines = str(error).strip().splitlines()
    reason = "" if isinstance(error, KeyError) or not lines or len(lines) > 3 else f" ({lines[0]})"
    return ModelError(f"{file} is no checkpoint of torch.save or safetensors, or a damaged one{reason}: get it again")


def published_shape(weights: dict[str, Tensor], where: str = "the checkpoint") -> PublishedShape:
    """The sizes of a head. ModelError: names are missing or unknown (all listed), or a tensor has too few axes."""
    expected = published_names()
    misfits = {"missing": sorted(expected - weights.keys()), "unknown": sorted(weights.keys() - expected)}
    if found := [f"{kind}: {_few(names)}" for kind, names in misfits.items() if names]:
        raise ModelError(f"{where} does not have the names of a published F-LMM head; {'; '.join(found)}")

    def size(name: str, axis: int) -> int:
        if weights[name].ndim <= axis:
            raise ModelError(f"{where}: {name} is {list(weights[name].shape)}, too few axes for a published F-LMM head")
        return weights[name].shape[axis]

    return PublishedShape(
        channels=size(FILTERS, 1),
        layers=size("text_layer_weights", 0),
        width=size("text_proj.weight", 1),
        base_width=size(FILTERS, 0),
        sam_channels=size("text_proj.weight", 0),
        sam_mlp=size(f"{SAM}mask_decoder.transformer.layers.0.mlp.lin1.weight", 0),
        sam_mask_channels=size(f"{SAM}prompt_encoder.mask_downscaling.3.weight", 0),
    )


def load_published(head: Head, file: Path) -> dict[str, Any]:
    """Loads all that a published head has into `head`; what it has not, the keyword selector, stays as it is.

    Returns the record that must stay with the head (JSON): source, sha256, licence, paper, what was converted, by which
    version, and the selector's state. ModelError: as `read_published` and `published_shape`, or for a head of another
    kind or other sizes, naming each. Then `head` is as before.
    """
    whole = _whole(head)
    weights = read_published(file)
    shape = published_shape(weights, str(file))
    sizes, own = asdict(shape), _sizes(whole)
    if differing := [f"{name} {sizes[name]} instead of {own[name]}" for name in sizes if sizes[name] != own[name]]:
        raise ModelError(
            f"{file} has other sizes than this cache and head need: {', '.join(differing)}; give a cache of the LMM "
            "and the SAM that it was made with (train-head: with --preset paper)"
        )
    wanted = to_published(whole)
    wrong = [
        f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)} instead of {list(wanted[name].shape)}"
        for name, value in weights.items()
        if value.shape != wanted[name].shape or not value.is_floating_point()
    ]
    if wrong:
        raise ModelError(f"{file} does not fit a published F-LMM head; of another shape or type: {_few(wrong)}")
    names = {name: theirs for name in whole.state_dict() if (theirs := _published_name(name))}
    whole.load_state_dict({name: weights[theirs] for name, theirs in names.items()}, strict=False)
    return _record(file, shape, weights)


def to_published(head: Head) -> dict[str, Tensor]:
    """The head's tensors under their published names; without the keyword selector, which has none. No copies."""
    return {theirs: value for name, value in _whole(head).state_dict().items() if (theirs := _published_name(name))}


@lru_cache
def published_names() -> frozenset[str]:
    """All names of a published head; they are the same at all sizes."""
    with torch.device("meta"):
        return frozenset(to_published(GroundingHead(PriorShape(channels=1, layers=1, width=1), GroundingConfig())))


def _published_name(own: str) -> str | None:
    if own.startswith(SELECTOR):
        return None
    prefix = next(prefix for prefix in PARTS if own.startswith(prefix))
    return PARTS[prefix] + own.removeprefix(prefix)


def _whole(head: Head) -> GroundingHead:
    if isinstance(head, GroundingHead) and head.refiner is not None and head.refiner.use_text:
        return head
    raise ModelError(
        f"published F-LMM heads are {GroundingHead.name!r} with a refiner that takes text, which this {head.name!r} is "
        f"not: use --head {GroundingHead.name}, without --no-refiner and --no-prompt-text"
    )


def _sizes(head: GroundingHead) -> dict[str, int]:
    """A head's sizes by the names of `PublishedShape`."""
    channels, mlp, mask_channels = _decoder_sizes(head.config.sam)
    return {
        **{name: getattr(head.shape, name) for name in ("channels", "layers", "width")},
        **{name: getattr(head.config, name) for name in ("base_width", "input_size")},
        **{"sam_channels": channels, "sam_mlp": mlp, "sam_mask_channels": mask_channels},
    }


def _decoder_sizes(sam: SamConfig) -> tuple[int, int, int]:
    return sam.channels, sam.decoder_mlp, sam.mask_channels


def _record(file: Path, shape: PublishedShape, weights: dict[str, Tensor]) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {
        "source": file.name,
        "sha256": digest,
        "licence": LICENCE,
        "paper": PAPER,
        "converted": {
            "parts": [prefix.rstrip(".") for prefix in PARTS.values()],
            "tensors": len(weights),
            "values": sum(value.numel() for value in weights.values()),
            "shape": asdict(shape),
            "sam": shape.sams,
        },
        "selector": UNTRAINED,
        "converter": CONVERTER,
    }


def _few(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(str, listed[:most])) + more
