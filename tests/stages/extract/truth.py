"""What a capture has to equal: the model's own eager attention, in plain loops."""

from __future__ import annotations

import torch

from stages.extract.attention import WordRows


def eager_truth(model, inputs, rows: list[WordRows], merge: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention [K, M, N, P], hidden [T, M, d], answer [A, d] from the model's own eager attention, in plain loops."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
    attention, hidden, answer = [], [], []
    for b, sample in enumerate(rows):
        for positions in sample.objects:
            maps = torch.stack(
                [torch.stack([layer[b, :, p][:, sample.columns] for p in positions]) for layer in out.attentions]
            )
            attention.append(maps.mean(1) if merge == "mean" else maps.amax(1))
            hidden += [torch.stack([states[b, p] for states in out.hidden_states[1:]]) for p in positions]
        answer += [out.last_hidden_state[b, p] for p in sample.answer]
    return torch.stack(attention), torch.stack(hidden), torch.stack(answer)
