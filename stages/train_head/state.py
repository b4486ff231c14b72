"""A training that can be killed: everything that the next step depends on, in one file, written whole or not at all.

It is a safetensors file: tensors, and JSON in its header. Reading it runs no code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.identity import canonical_json, differing, plain
from manifests.errors import PipelineError

STATE_FILE: Final = "state.safetensors"
LARGEST_HEADER: Final = 100_000_000  # bytes, as in safetensors itself


def save_state(
    file: Path, head: nn.Module, optimizer: torch.optim.Optimizer, averages: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Weights, the optimiser's moments, their averages, the random generators, and `facts` (JSON)."""
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"average.{name}": value for name, value in averages.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    # copied: weights may share memory, which safetensors refuses
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    save_file(copies, partial, metadata={"facts": canonical_json(facts).decode()})
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def read_facts(file: Path) -> dict[str, Any] | None:
    """The JSON of a stored state; None: there is none. PipelineError: it is damaged."""
    try:
        # by hand, from one open file: safetensors opens a file twice, and another one may have taken its place
        with file.open("rb") as stored:
            size = int.from_bytes(stored.read(8), "little")
            if size > LARGEST_HEADER:
                raise ValueError("its header is too large")
            return dict(json.loads(json.loads(stored.read(size))["__metadata__"]["facts"]))
    except FileNotFoundError:
        return None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{file} is not the state of a training ({error}); --restart begins anew") from None


def load_state(file: Path, head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put everything back where `save_state` found it; -> the averages. PipelineError: it does not fit."""
    device = next(head.parameters()).device
    try:
        with safe_open(file, "pt") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        head.load_state_dict(_below(found, "head."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(found, "optimizer.").items():
            number, _, field = name.partition(".")
            state.setdefault(int(number), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(found["random.cpu"])
        if "random.cuda" in found and torch.cuda.is_available():
            torch.cuda.set_rng_state(found["random.cuda"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise PipelineError(
            f"{file} does not fit this training ({' '.join(str(error).split())[:300]}); --restart begins anew"
        ) from None
    # a copy: a tensor in the middle of a file's bytes is aligned otherwise, and kernels may add up in another order
    return {name: value.to(device, copy=True) for name, value in _below(found, "average.").items()}


def require_same(file: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """PipelineError, naming what differs, unless a stored training has the settings of this one."""
    if found := differing(plain(stored), plain(given)):
        fields = "; ".join(f"{each.field}: {each.stored} there, {each.given} now" for each in found)
        raise PipelineError(
            f"{file} is of an unfinished training with other settings ({fields}): give those to go on with it, "
            "--restart to begin anew, or another --out"
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
