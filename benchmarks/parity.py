"""Is what the cache holds what the model really did? Exactness of the embedded LMM's priors.

    python -m benchmarks.parity [--quick]

Captured attention and hidden states against `attn_implementation="eager", output_attentions=True` (float32, batches of
1 and of 4 with padding), logits against a separately loaded model with plain sdpa, cached priors against live ones.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from transformers import LlavaForConditionalGeneration

from cache.priors import Priors
from cache.scaling import restore_maps
from manifests.scenes.language import narrative
from manifests.scenes.world import make_scene
from manifests.scenes.write import ScenesConfig, write_scenes
from manifests.schema import DEFAULT_PROMPT, Piece, Sample
from pipeline.cli import main as run_pipeline
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM, LMMInput, Tokeniser
from stages.extract.presets import resolve_lmm


@dataclass(kw_only=True, slots=True)
class Config:
    """What is compared."""

    samples: int = 48
    """Held-out scenes with a narrative each; a multiple of 4."""
    quick: bool = False
    """8 scenes."""


def inputs_of(lmm: FrozenLMM, tokeniser: Tokeniser, count: int) -> list[LMMInput]:
    """Narratives of validation scenes: texts of unequal length with several phrases each."""
    found = []
    for index in range(count):
        scene = make_scene("val", index)
        segments = narrative(scene, random.Random(index))
        numbers = iter(range(len(segments)))
        pieces = tuple(Piece(text=s.text, object=next(numbers) if s.things or s.stuff else None) for s in segments)
        sample = Sample(
            sample_id=str(index),
            dataset="parity",
            split="val",
            task="narrative",
            image_id=str(index),
            image_path="none.jpg",
            height=scene.height,
            width=scene.width,
            prompt=DEFAULT_PROMPT,
            pieces=pieces,
            objects=(),
        )
        answer = tokeniser.answer(sample)
        found.append(
            LMMInput(
                pixels=lmm.prepare(Image.fromarray(scene.image)),
                prompt_ids=tokeniser.prompt(DEFAULT_PROMPT),
                answer_ids=answer.ids,
                object_tokens=answer.tokens_of(sum(p.object is not None for p in pieces)),
            )
        )
    return found


@contextmanager
def kept_output(module: torch.nn.Module) -> Iterator[list[Any]]:
    """The outputs of a module's forward passes inside the block."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def compare(lmm: FrozenLMM, batches: list[list[LMMInput]]) -> dict[str, Any]:
    """Largest absolute differences to eager attention, and whether the logits are plain sdpa's, bit for bit."""
    folder = lmm.preset.source
    eager = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plain = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    attention = hidden = 0.0
    equal = True
    for batch in batches:
        inputs, rows = lmm.collate(batch, max(len(s.prompt_ids) + len(s.answer_ids) for s in batch))
        with kept_output(lmm.capture.decoder) as outputs:
            captured = lmm.capture.run(inputs, rows)
        logits = lmm.model.lm_head(outputs[0].last_hidden_state)  # of the very pass that captured
        truth = eager.model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        objects = tokens = 0
        for b, sample in enumerate(rows):
            for positions in sample.objects:
                maps = torch.stack([layer[b][:, positions][:, :, sample.columns].mean(1) for layer in truth.attentions])
                attention = max(attention, (captured.attention[objects] - maps).abs().max().item())
                objects += 1
                for position in positions:
                    states = torch.stack([states[b, position] for states in truth.hidden_states[1:]])
                    hidden = max(hidden, (captured.hidden[tokens] - states).abs().max().item())
                    tokens += 1
        equal = equal and torch.equal(logits, plain(**inputs).logits)
    return {"attention": attention, "hidden": hidden, "logits": equal}


def cached_against_live(lmm: FrozenLMM, tokeniser: Tokeniser) -> dict[str, Any]:
    """Extract a few scenes through the commands and compare the cache with fresh forward passes of the same samples.

    The tolerance is float16's: 2^-11 of a scaled value, beside 1e-5 for the plan's padding.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "scenes", Path(folder) / "cache"
        write_scenes(root, ScenesConfig(train=4, val=4, test_a=4, test_b=4, narratives=4, shifted=4))
        if code := run_pipeline(["extract", "--data-root", str(root), "--cache", str(cache), "--local"]):
            raise SystemExit(code)
        priors = Priors.open(cache)
        worst = {"attention": 0.0, "hidden": 0.0, "answer_hidden": 0.0}
        within = True
        for index, sample in enumerate(priors.samples):
            item = priors.read(index)
            assert item is not None
            answer = tokeniser.answer(sample)
            image = open_image(root / sample.image_path, (sample.width, sample.height))
            live = lmm.run(
                [
                    LMMInput(
                        pixels=lmm.prepare(image),
                        prompt_ids=tokeniser.prompt(sample.prompt),
                        answer_ids=answer.ids,
                        object_tokens=answer.tokens_of(len(sample.objects)),
                    )
                ]
            )
            pairs = {
                "attention": (restore_maps(item.attention, item.attention_mass), live.attention.numpy()),
                "hidden": (item.hidden, live.hidden.numpy()),
                "answer_hidden": (item.answer_hidden, live.answer_hidden.numpy()),
            }
            for name, (cached, fresh) in pairs.items():
                fresh = fresh.reshape(cached.shape)
                difference = np.abs(cached - fresh)
                bound = 2.0**-11 * np.abs(fresh) + 1e-5 * max(1.0, float(np.abs(fresh).max()))
                within = within and bool((difference <= bound).all())
                worst[name] = max(worst[name], float(difference.max()))
    return worst | {"equal": within}


def main(config: Config) -> None:
    count = 8 if config.quick else config.samples
    lmm = FrozenLMM(resolve_lmm("tiny"))
    tokeniser = Tokeniser(lmm.preset)
    samples = inputs_of(lmm, tokeniser, count)
    fours = [samples[i : i + 4] for i in range(0, count, 4)]
    single, padded = compare(lmm, [[s] for s in samples]), compare(lmm, fours)
    together = torch.cat([lmm.run(batch).attention for batch in fours])
    alone = torch.cat([lmm.run([sample]).attention for sample in samples])
    cached = cached_against_live(lmm, tokeniser)
    result = {
        "attention_max_abs_diff": max(single["attention"], padded["attention"]),
        "hidden_max_abs_diff": max(single["hidden"], padded["hidden"]),
        "batch_max_abs_diff": (together - alone).abs().max().item(),
        "logits_bit_equal": single["logits"] and padded["logits"],
        "cached_equals_live": cached["equal"],
        "cached_attention_max_abs_diff": cached["attention"],
        "cached_hidden_max_abs_diff": cached["hidden"],
        "cached_answer_hidden_max_abs_diff": cached["answer_hidden"],
        "samples": count,
        "quality_claim": not config.quick,
    }
    for name, value in result.items():
        print(f"{name:>32}  {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
