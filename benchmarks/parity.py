"""Is what the cache holds what the model really did? Exactness of an LMM's priors, by default the embedded one's.

    python -m benchmarks.parity [--quick]
    python -m benchmarks.parity --lmm llava --device cuda --samples 8      published weights, where they are at hand
    python -m benchmarks.parity --families      and of every LMM family, tiny and of random weights

Captured attention and hidden states against `attn_implementation="eager", output_attentions=True` (float32, batches of
1 and of 4 with padding), logits against a separately and plainly loaded model, cached priors against live ones.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from benchmarks.families import FAMILIES, save_family
from benchmarks.family_inputs import family_inputs
from cache.priors import Priors, SamplePriors
from cache.scaling import restore_maps
from manifests.scenes.language import narrative
from manifests.scenes.world import make_scene
from manifests.scenes.write import ScenesConfig, write_scenes
from manifests.schema import DEFAULT_PROMPT, Piece, Sample
from pipeline.cli import main as run_pipeline
from stages.extract.attention import WordRows
from stages.extract.capture import AttentionCapture, Captured, text_decoder
from stages.extract.grids import grid_of
from stages.extract.images import open_image
from stages.extract.lmm import FrozenLMM
from stages.extract.presets import resolve_lmm
from stages.extract.processor import LMMInput
from stages.extract.repair import repaired
from stages.extract.stored import on_grid, shown_cells


@dataclass(kw_only=True, slots=True)
class Config:
    """What is compared."""

    lmm: str = "tiny"
    """A preset, a folder or a Hugging Face id; two copies of it in float32 have to fit into the memory."""
    device: str = "cpu"
    """cpu or cuda."""
    samples: int = 48
    """Held-out scenes with a narrative each; a multiple of 4."""
    families: bool = False
    """Also every LMM family."""
    quick: bool = False
    """8 scenes."""


def inputs_of(lmm: FrozenLMM, count: int) -> list[LMMInput]:
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
        answer = lmm.processor.answer(sample)
        found.append(
            LMMInput(
                image=lmm.prepare(Image.fromarray(scene.image)),
                prompt=lmm.processor.prompt(DEFAULT_PROMPT, (scene.width, scene.height)),
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


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 of every parameter and buffer, by name."""
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(name.encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


Batch = tuple[dict[str, Any], list[WordRows]]


Chosen = tuple[list[torch.Tensor], list[torch.Tensor]]


def chosen_of_eager(output: Any, rows: list[WordRows], merge: str) -> Chosen:
    """Each object's maps [A, N, P] and each of its tokens' states [M, d], cut in plain loops from all the outputs."""
    maps, states = [], []
    for b, sample in enumerate(rows):
        for positions in sample.objects:
            words = [layer[b][:, positions][:, :, sample.columns] for layer in output.attentions]
            maps.append(torch.stack([w.mean(1) if merge == "mean" else w.amax(1) for w in words]).cpu())
            states += [torch.stack([layer[b, p] for layer in output.hidden_states[1:]]).cpu() for p in positions]
    return maps, states


@contextmanager
def loaded(folder: str | Path, device: torch.device, **options: Any) -> Iterator[Any]:
    """The checkpoint in float32, frozen, and gone from the memory afterwards.

    Frozen as the captured one: torch folds products with weights that require grad, which rounds in another way.
    """
    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(folder, dtype=torch.float32, **options).to(device)
    yield repaired(model.eval().requires_grad_(False))
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def compare(folder: str | Path, capture: AttentionCapture, batches: Iterable[Batch]) -> dict[str, Any]:
    """Largest absolute differences to eager attention; whether the logits are the baseline's, bit for bit; and whether
    no weight changed or carries a gradient.

    The baseline is what plain `from_pretrained` picks: sdpa, or eager for models that sdpa can not run (soft-capped
    scores). `folder`: the checkpoint that `capture` wraps, loaded here a second time for each, one after the other.
    """
    batches = list(batches)
    device = next(capture.model.parameters()).device
    with loaded(folder, device, attn_implementation="eager") as eager, kept_output(text_decoder(eager)) as outputs:
        truths: list[Chosen] = []
        for inputs, rows in batches:
            eager(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
            truths.append(chosen_of_eager(outputs.pop(), rows, capture.merge))
    with loaded(folder, device) as plain, kept_output(text_decoder(plain)) as outputs:
        expected = [(plain(**inputs).logits.cpu(), outputs.pop().last_hidden_state.cpu()) for inputs, _ in batches]
    attention = hidden = largest = 0.0
    equal, before = True, weights_digest(capture.model)
    for (inputs, rows), (maps, states), (logits, last) in zip(batches, truths, expected, strict=True):
        with kept_output(capture.decoder) as outputs:
            captured = capture.run(inputs, rows)
        for found, truth in zip(captured.attention.cpu(), maps, strict=True):
            count = truth.shape[-1]
            attention = max(attention, (found[..., :count] - truth).abs().max().item())
            attention = max(attention, found[..., count:].abs().sum().item())
        for found, truth in zip(captured.hidden.cpu(), states, strict=True):
            hidden = max(hidden, (found - truth).abs().max().item())
            largest = max(largest, truth.abs().max().item())
        # the states of the very pass that captured, and the logits of one after it
        equal = equal and torch.equal(outputs[0].last_hidden_state.cpu(), last)
        equal = equal and torch.equal(capture.model(**inputs).logits.cpu(), logits)
    frozen = before == weights_digest(capture.model) and not any(p.requires_grad for p in capture.model.parameters())
    return {"attention": attention, "hidden": hidden, "largest": largest, "logits": equal, "frozen": frozen}


def compare_family(name: str) -> dict[str, Any]:
    """The parity of one LMM family: tiny, of random weights, mean and max, unpadded and padded on either side.

    Four samples together and alone; those of families that tile images also with their tiles.
    """
    worst: dict[str, Any] = {"attention": 0.0, "hidden": 0.0, "largest": 0.0, "logits": True, "frozen": True}
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_family(name, Path(temporary))
        auto: Any = AutoModelForImageTextToText
        for merge in ("mean", "max"):
            capture = AttentionCapture(auto.from_pretrained(folder, dtype=torch.float32), merge)
            config = capture.model.config
            batches = [family_inputs(folder, config, side) for side in ("none", "left", "right")]
            tiled = [] if grid_of(config).fine is None else [family_inputs(folder, config, "right", views=2)]
            found = compare(folder, capture, batches + tiled)
            for key, value in found.items():
                worst[key] = worst[key] and value if isinstance(value, bool) else max(worst[key], value)
        together = capture.run(*batches[-1]).attention
        singles = [family_inputs(folder, capture.model.config, "right", only=i) for i in range(len(batches[-1][1]))]
        alone = [capture.run(*single).attention for single in singles]
        batch = max(
            (together[2 * i : 2 * i + 2, ..., : a.shape[-1]] - a).abs().max().item() for i, a in enumerate(alone)
        )
    return {
        "attention_max_abs_diff": worst["attention"],
        "hidden_max_abs_diff": worst["hidden"],
        "hidden_max_abs": worst["largest"],
        "batch_max_abs_diff": batch,
        "logits_bit_equal": worst["logits"],
        "weights_unchanged": worst["frozen"],
        "baseline": capture.baseline,
    }


def collated(lmm: FrozenLMM, batch: list[LMMInput]) -> Batch:
    """Inputs of a batch, padded to its longest sample."""
    return lmm.collate(batch, max(s.length for s in batch))


def together_and_alone(lmm: FrozenLMM, batch: list[LMMInput]) -> float:
    """Largest difference between the maps of samples in one batch and each by itself."""
    together, worst = lmm.run(batch).attention, 0.0
    for sample in batch:
        alone = lmm.run([sample]).attention
        mine, together = together[: len(alone), ..., : alone.shape[-1]], together[len(alone) :]
        worst = max(worst, (mine - alone).abs().max().item())
    return worst


def cached_and_live_maps(
    item: SamplePriors, live: Captured, one: LMMInput, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The cached maps and those of a live pass, on the grid they are stored on: as they were, or of mean 1."""
    (view,) = one.prompt.views
    if (view.height, view.width) == grid:
        return restore_maps(item.attention, item.attention_mass), live.attention.cpu().numpy()
    maps = on_grid(live.attention[..., : len(view.columns)].flatten(1, 2), view, grid, shown_cells(view, grid))
    fresh = maps / maps.mean((-1, -2), keepdim=True).clamp(min=1e-30)
    return item.attention.astype(np.float32), fresh.cpu().numpy()


FEW: Final = ScenesConfig(train=4, val=4, test_a=4, test_b=4, narratives=4, shifted=4)


def cached_against_live(lmm: FrozenLMM, scenes: ScenesConfig = FEW) -> dict[str, Any]:
    """Extract a few scenes through the commands and compare the cache with fresh forward passes of the same samples.

    Samples that failed are not compared, but counted: an LMM of random weights may have nothing to say.
    The tolerance is float16's: 2^-11 of a scaled value, beside 1e-5 for the plan's padding.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "scenes", Path(folder) / "cache"
        write_scenes(root, scenes)
        command = ["extract", "--lmm", lmm.preset.name, "--dtype", "float32", "--sam", "tiny", "--data-root", str(root)]
        command += ["--cache", str(cache), "--device", str(lmm.device), "--local"]
        if code := run_pipeline(command):
            raise SystemExit(code)
        priors = Priors.open(cache)
        worst = {"attention": 0.0, "hidden": 0.0, "answer_hidden": 0.0}
        within = True
        for index, sample in enumerate(priors.samples):
            if (item := priors.read(index)) is None:
                continue
            answer = lmm.processor.answer(sample)
            image = open_image(root / sample.image_path, (sample.width, sample.height))
            one = LMMInput(
                image=lmm.prepare(image),
                prompt=lmm.processor.prompt(sample.prompt, image.size),
                answer_ids=answer.ids,
                object_tokens=answer.tokens_of(sample.slots),
            )
            live = lmm.run([one])
            pairs = {
                "attention": cached_and_live_maps(item, live, one, lmm.preset.grid),
                "hidden": (item.hidden, live.hidden.cpu().numpy()),
                "answer_hidden": (item.answer_hidden, live.answer_hidden.cpu().numpy()),
            }
            for name, (cached, fresh) in pairs.items():
                fresh = fresh.reshape(cached.shape)
                difference = np.abs(cached - fresh)
                bound = 2.0**-11 * np.abs(fresh) + 1e-5 * max(1.0, float(np.abs(fresh).max()))
                within = within and bool((difference <= bound).all())
                worst[name] = max(worst[name], float(difference.max()))
        failed = len(priors.failures)
    return worst | {"equal": within and failed < len(priors), "failed": failed}


def main(config: Config) -> None:
    disable_progress_bar()  # of loading weights, a hundred times
    count = 8 if config.quick else config.samples
    lmm = FrozenLMM(resolve_lmm(config.lmm), config.device, "float32")
    samples = inputs_of(lmm, count)
    fours = [samples[i : i + 4] for i in range(0, count, 4)]
    folder = lmm.preset.source
    single = compare(folder, lmm.capture, (collated(lmm, [sample]) for sample in samples))
    padded = compare(folder, lmm.capture, (collated(lmm, batch) for batch in fours))
    cached = cached_against_live(lmm)
    result: dict[str, Any] = {
        "attention_max_abs_diff": max(single["attention"], padded["attention"]),
        "hidden_max_abs_diff": max(single["hidden"], padded["hidden"]),
        "hidden_max_abs": max(single["largest"], padded["largest"]),
        "batch_max_abs_diff": max(together_and_alone(lmm, batch) for batch in fours),
        "logits_bit_equal": single["logits"] and padded["logits"],
        "weights_unchanged": single["frozen"] and padded["frozen"],
        "cached_equals_live": cached["equal"],
        "cached_failed_samples": cached["failed"],
        "cached_attention_max_abs_diff": cached["attention"],
        "cached_hidden_max_abs_diff": cached["hidden"],
        "cached_answer_hidden_max_abs_diff": cached["answer_hidden"],
        "samples": count,
        "quality_claim": not config.quick,
    }
    for name, value in result.items():
        print(f"{name:>32}  {value}")
    if config.families:
        result["families"] = {}
        print(f"\n{'family':<21}{'attention':>10}{'hidden':>10}{'batch':>10}  weights    logits bit-equal to")
        for name in FAMILIES:
            found = result["families"][name] = compare_family(name)
            differences = (found[f"{part}_max_abs_diff"] for part in ("attention", "hidden", "batch"))
            equal = found["baseline"] if found["logits_bit_equal"] else "NOT EQUAL"
            frozen = "unchanged" if found["weights_unchanged"] else "CHANGED  "
            print(f"{name:<21}" + "".join(f"{d:>10.1e}" for d in differences) + f"  {frozen}  {equal}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
