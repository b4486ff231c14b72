"""Do the attention priors carry anything? The trained head beside its controls: same recipe, same data, three seeds.

    python -m benchmarks.controls            two hours on 2 cores; finished runs are kept in runs/controls
    python -m benchmarks.controls --quick    a minute or two, claims nothing

All numbers are of held-out scenes: RES of testA and testB, PNG of its val2017, and the shifted scenes (colour-shape
pairs and a texture that no model has seen). Every choice (map, threshold) is made on training and validation samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import tyro

from benchmarks import best_map
from benchmarks.embedded import CUT, QUICK, extracted
from benchmarks.random_weights import random_llava
from cache.priors import Priors, SamplePriors
from manifests.schema import Sample
from pipeline.comparison import Condition, Job, compare, held_out_indices, numbers
from pipeline.comparison_table import SHARES, SHARES_SHIFTED, about, summary
from stages.evaluate.baselines import Lexicon, NounPhrases
from stages.evaluate.keywords import summarise_chooser, summarise_keywords, words_of
from stages.evaluate.measures import Measure
from stages.evaluate.scoring import Outcome
from stages.train_head.data import PriorsLike
from stages.train_head.recipe import RECIPES


@dataclass(kw_only=True, slots=True)
class Config:
    """What is run."""

    cache: Path = Path("runs/cache")
    """The embedded default's cache (`run_pipeline.py extract`); made if it is missing."""
    out: Path = Path("runs/controls")
    """Where finished runs are kept; delete it to start anew."""
    seeds: int = 3
    epochs: int | None = None
    """Default: the demo's."""
    processes: int = 2
    """Runs side by side, one CPU thread each."""
    device: str = "auto"
    """cuda, cpu or auto."""
    quick: bool = False
    """One seed, one epoch, a small cache of its own."""


ROWS: Final = {
    "trained": "trained: mask + box + text prompts",
    "best_map": "(a) best single attention map, thresholded, no training",
    "random_lmm": "(b1) LMM with random weights",
    "zero_attention": "(b2) zero attention, trained hidden states",
    "swapped_attention": "(b3) attention of another object of the image",
    "random_hidden": "(b4) trained attention, random hidden states",
    "no_refiner": "(c) no refiner",
    "mask": "(c) + mask",
    "mask_box": "(c) + mask + box",
    "mask_box_text": "(c) + mask + box + text",
    "random_lmm_no_text": "(b1) without the text prompt",
    "zero_attention_no_text": "(b2) without the text prompt",
    "swapped_attention_no_text": "(b3) without the text prompt",
}
SHOWN: Final = (*SHARES, "shifted_res_ciou", "shifted_png_all")


NO_TEXT: Final = {"prompt_text": False}


class Changed:
    """Priors of which something was taken away; otherwise the same (`stages.train_head.data.PriorsLike`)."""

    def __init__(self, priors: Priors, change: str):
        self.priors, self.change = priors, change
        self.samples, self.failures, self.identity = priors.samples, priors.failures, priors.identity

    def embedding(self, index: int) -> np.ndarray:
        return self.priors.embedding(index)

    def advise(self, indices: Iterable[int]) -> None:
        self.priors.advise(indices)

    def image_box(self, index: int) -> tuple[int, int, int, int, int]:
        return self.priors.image_box(index)

    def read(self, index: int) -> SamplePriors | None:
        item = self.priors.read(index)
        if item is None or self.change == "nothing":
            return item
        if self.change == "zero":
            return replace(item, attention=np.zeros_like(item.attention))
        if self.change == "hidden":
            noise = np.random.default_rng(index).standard_normal(item.scaled_hidden.shape)  # of RMS 1 as well
            return replace(item, scaled_hidden=noise.astype(np.float16))
        if self.samples.searched()[index]:  # of words, not of objects; neither trained on nor compared
            return item
        return replace(item, attention=self._swapped(item.attention, self.samples[index]))

    @staticmethod
    def _swapped(attention: np.ndarray, sample: Sample) -> np.ndarray:
        """For each object the maps of the next one in the text with another mask; zeros where there is none."""
        swapped = np.zeros_like(attention)
        count = len(sample.objects)
        for k in range(count):
            others = [(k + step) % count for step in range(1, count)]
            own = sample.objects[k].mask["counts"]
            other = next((j for j in others if sample.objects[j].mask["counts"] != own), None)
            if other is not None:
                swapped[k] = attention[other]
        return swapped


def conditions(caches: dict[str, str]) -> list[Condition]:
    """What is trained. caches: of the "trained" LMM, and of the "random" one."""
    # name -> (which cache, what is done to a sample's priors, options of the head)
    table: dict[str, tuple[str, str, dict[str, Any]]] = {
        "trained": ("trained", "nothing", {}),
        "random_lmm": ("random", "nothing", {}),
        "zero_attention": ("trained", "zero", {}),
        "swapped_attention": ("trained", "swap", {}),
        "random_hidden": ("trained", "hidden", {}),
        "no_refiner": ("trained", "nothing", {"refiner": False}),
        "mask": ("trained", "nothing", {"prompt_box": False, "prompt_text": False}),
        "mask_box": ("trained", "nothing", NO_TEXT),
        "random_lmm_no_text": ("random", "nothing", NO_TEXT),
        "zero_attention_no_text": ("trained", "zero", NO_TEXT),
        "swapped_attention_no_text": ("trained", "swap", NO_TEXT),
    }
    return [
        Condition(
            name=name, title=ROWS[name], cache=caches[which], options=options, view=partial(Changed, change=change),
            more=keyword_f1 if name == "trained" else None,
        )
        for name, (which, change, options) in table.items()
    ]  # fmt: skip


def keyword_f1(priors: PriorsLike, outcome: Outcome) -> dict[str, dict[str, float]]:
    """ "keyword_selector" and its rivals: F1 of words and of phrases, in held-out narratives of the scenes."""
    words = [replace(w, dataset="scenes") for w in outcome.words if w.dataset.startswith("scenes")]
    texts = [words_of(priors.samples[i].pieces) for i in priors.samples.where(split=["train"], task=["narrative"])]
    rows = {
        "selector": summarise_keywords(words, 0.3, sweep=(), draws=0),
        "all_nouns": summarise_chooser(words, "every noun phrase", NounPhrases.for_scenes(), draws=0),
        "lexicon": summarise_chooser(words, "lexicon", Lexicon.fit(texts), draws=0),
    }
    return {f"keyword_{name}": _f1(measures) for name, measures in rows.items() if measures}


def _f1(measures: list[Measure]) -> dict[str, float]:
    """F1 of words and of phrases, of the one split that narratives are held out in."""
    return {
        m.group: m.value.value if m.value else 0.0
        for m in measures
        if m.metric == "f1" and m.group in ("word", "phrase")
    }


def extract(config: Config) -> dict[str, str]:
    """Both caches, made where they are missing; they share the images' SAM embeddings."""
    common = QUICK if config.quick else ()
    cache = config.out / "cache" if config.quick else config.cache
    lmm = random_llava(config.out)
    images = ("--images", str(cache / "images"), "--sam", "tiny")
    return {
        "trained": extracted(cache, *common),
        "random": extracted(config.out / lmm.name.replace("lmm", "cache"), "--lmm", str(lmm), *images, *CUT, *common),
    }


def main(config: Config) -> None:
    if config.quick:
        config = replace(config, out=config.out / "quick", seeds=1, epochs=1)
    config.out.mkdir(parents=True, exist_ok=True)
    caches = extract(config)
    given: dict[str, Any] = {"out": config.out, "epochs": config.epochs, "device": config.device}
    compared = conditions(caches)
    found = compare(
        [Job(condition=each, seed=seed, **given) for seed in range(config.seeds) for each in compared], config.processes
    )
    runs = {each.name: [found[each.name, seed] for seed in range(config.seeds)] for each in compared}
    priors = Priors.open(caches["trained"])
    chosen = best_map.choose(priors)
    single = numbers(best_map.apply(priors, held_out_indices(priors.samples), chosen))
    show(config, runs | {"best_map": [single], "mask_box_text": runs["trained"]}, chosen)


def show(config: Config, runs: dict[str, list[dict[str, Any]]], chosen: dict[str, Any]) -> None:
    """The table, then everything as one JSON line."""
    result: dict[str, Any] = {
        metric: {name: summary([run[metric] for run in done]) for name, done in runs.items()}
        for metric in (*SHARES, *SHARES_SHIFTED)
    }
    print(f"\n{'percent, mean over seeds (max - min)':<60}" + "".join(f"{m:>18}" for m in SHOWN))
    for name, title in ROWS.items():
        cells = (result[m][name] for m in SHOWN)
        print(f"{title:<60}" + "".join(f"{100 * c['mean']:>11.1f} ({100 * c['spread']:3.1f})" for c in cells))
    keyword = {
        level: {
            kind: summary([run[f"keyword_{kind}"][level] for run in runs["trained"]])
            for kind in ("selector", "all_nouns", "lexicon")
        }
        for level in ("word", "phrase")
    }
    for level, row in keyword.items():
        print(f"keyword F1, {level} level: " + ", ".join(f"{k} {100 * v['mean']:.1f}" for k, v in row.items()))
    claim = {}
    for suffix, own in (("", "trained"), ("_no_text", "mask_box")):
        worst = max(
            result["res_ciou"][f"{n}{suffix}"]["mean"] for n in ("random_lmm", "zero_attention", "swapped_attention")
        )
        claim[f"trained_minus_controls{suffix}"] = result["res_ciou"][own]["mean"] - worst
    print("trained - max(b1, b2, b3), RES cIoU: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in claim.items()))
    print(f"(a) map and threshold: {chosen}")
    result |= {
        "keyword_f1": keyword["word"],
        "keyword_f1_phrase": keyword["phrase"],
        "claim": claim,
        "failed_samples": runs["trained"][0]["failed_samples"],
        "recipe": {"seeds": config.seeds, "epochs": config.epochs or RECIPES["demo"].epochs},
        **about(config.device, config.processes),
        "quality_claim": not config.quick,
    }
    (config.out / "controls.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
