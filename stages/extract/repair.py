"""What transformers leaves broken and extraction needs, repaired on a loaded model; weights and numbers stay."""

from __future__ import annotations

from typing import Any

from torch import nn


def repaired(model: Any) -> Any:
    """The model itself. Llama 4 of transformers 5.24.0 reads a field that its text model's output does not have."""
    if model.config.model_type == "llama4":
        model.language_model.register_forward_hook(_without_image_outputs)
    return model


def _without_image_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
    output.image_outputs = None
