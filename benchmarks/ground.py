"""Do the words that the LMM says live point at the right pixels, as fast and as well as through the cache?

    python -m benchmarks.ground              60 held-out scenes (GCG's captions), the embedded models; a minute or two
    python -m benchmarks.ground --heads tiny runs/head-1 runs/head-2     heads of other seeds: `train-head --seed 1 …`
    python -m benchmarks.ground --quick      a few scenes

Every scene: the LMM answers, the selector chooses words, the head draws masks (`Grounder.answer`, `.ground`).

    keyword_f1    the words chosen, against those of the answer that name a thing or stuff (`naming`: the scenes'
                  language is closed, so it is known which do)
    phrase_f1     the phrases chosen, against the reference caption's, one to one, alike in words (token F1 >= 0.5)
    matched_miou  masks of the answer against the reference's: mean IoU of the one-to-one pairs with the largest total;
                  pairs that do not touch are none
    mask_recall   share of the reference's phrases whose pair has IoU >= 0.5

The LMM may leave out what the reference has, say more, and say it in other words: the last three are not out of 100.
Controls: every noun phrase, and every word, in the selector's place; the masks of another scene in the masks' place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
import torch
import tyro

from benchmarks.embedded import QUICK, extracted
from cache.priors import Priors
from manifests.masks import decode
from manifests.scenes.language import PLURALS, VERBS
from manifests.scenes.world import SHAPES, STUFF
from manifests.schema import Sample
from stages.evaluate.assignment import best_pairs
from stages.evaluate.baselines import NounPhrases
from stages.evaluate.gcg import pair_ious
from stages.evaluate.scoring import LAMBDA, choose_phrases, phrase_masks, runs_of, spoken
from stages.evaluate.similarity import TokenF1
from stages.ground import Answer, Grounder, Grounding
from stages.ground.results import PARTS

SAME: Final = 0.5
MASKS: Final = ("matched_miou", "mask_recall")
NOUNS: Final = frozenset({*SHAPES, *PLURALS.values(), *STUFF, "thing"})
SAYING: Final = frozenset({*VERBS.values(), "is", "are"})
FEW_PIXELS: Final = 1e-3
"""Share of an image's pixels in which a live mask may differ from the cached one: rounding, at the edges."""


@dataclass(kw_only=True, slots=True)
class Config:
    """What is grounded with what."""

    heads: tuple[str, ...] = ("tiny",)
    """Heads of the embedded LMM; "tiny" is the embedded one. Of several: mean and half the range."""
    out: Path = Path("runs/benchmarks/ground")
    """Where the cache of the same scenes goes."""
    lam: float = LAMBDA
    """λ of the keyword selector."""
    quick: bool = False
    """24 scenes."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """Words of the answers, and pairs of chosen and true phrases, over all scenes."""

    words: list[tuple[int, int, int]] = field(default_factory=list)
    """Chosen, naming, both; of every answer."""
    chosen: int = 0
    true: int = 0
    alike: int = 0
    ious: list[float] = field(default_factory=list)

    def add_words(self, words: Sequence[str], labels: np.ndarray) -> None:
        """labels: int [words], -1 where not chosen, else a number for each phrase."""
        named = naming(words)
        self.words.append((int((labels >= 0).sum()), int(named.sum()), int((named & (labels >= 0)).sum())))

    def add(self, texts: Sequence[str], masks: np.ndarray, sample: Sample, truth: np.ndarray) -> None:
        """texts of the chosen phrases; masks: bool [n, height, width], theirs or others."""
        self.chosen += len(texts)
        self.true += len(sample.objects)
        alike = TokenF1()(texts, [item.phrase for item in sample.objects]) >= SAME
        self.alike += sum(bool(alike[pair]) for pair in best_pairs(alike.astype(float)))
        ious = pair_ious(masks, truth)
        self.ious += [float(ious[pair]) for pair in best_pairs(ious) if ious[pair] > 0]

    def scores(self) -> dict[str, float]:
        chosen, naming_words, both = np.array(self.words or [(0, 0, 0)]).sum(0).tolist()
        return {
            "keyword_f1": 2 * both / max(1, chosen + naming_words),
            "keyword_precision": both / max(1, chosen),
            "keyword_recall": both / max(1, naming_words),
            "phrase_f1": 2 * self.alike / max(1, self.chosen + self.true),
            "matched_miou": mean(self.ious) if self.ious else 0.0,
            "mask_recall": sum(iou >= SAME for iou in self.ious) / max(1, self.true),
        }


def naming(words: Sequence[str]) -> np.ndarray:
    """bool [words]: which words of an answer in the scenes' language name a thing or stuff.

    Those before the verb of a sentence whose subject has such a noun ("the star on the left , red" leans), and every
    noun phrase with one behind it (on "the grass"); none where the sentence denies something. Places ("at the top")
    behind the verb name none.
    """
    named, start = np.zeros(len(words), bool), 0
    for end in [k for k, word in enumerate(words) if word == "."] + [len(words)]:
        part = words[start:end]
        phrases = [run for run in runs_of(NounPhrases.for_scenes()(part)) if NOUNS.intersection(part[k] for k in run)]
        verbs = [k for k, word in enumerate(part) if word in SAYING and (k == 0 or part[k - 1] != "that")]
        if not {"no", "not"}.intersection(part):
            for run in phrases:
                named[[start + k for k in run]] = True
            if verbs and any(run[-1] < verbs[0] for run in phrases):
                named[start : start + verbs[0]] = True
        start = end + 1
    return named


def truth_of(sample: Sample) -> np.ndarray:
    """bool [objects, height, width]"""
    return np.stack([decode(item.mask) for item in sample.objects])


def masks_of(found: Grounding) -> np.ndarray:
    """bool [phrases, height, width]"""
    size = (found.image.height, found.image.width)
    return np.stack([phrase.mask for phrase in found.phrases]) if found.phrases else np.zeros((0, *size), bool)


def agreement(
    grounder: Grounder, priors: Priors, index: int, found: Grounding, answer: Answer, lam: float
) -> dict[str, Any]:
    """The live result beside that of extract and evaluate: is the answer the same, the phrases, and how many pixels?"""
    sample, item = priors.samples[index], priors.read(index)
    assert item is not None and sample.reply is not None
    cached = choose_phrases(grounder.head, priors, index, item, grounder.device, lam)
    assert cached is not None
    same = {"answer": sample.reply.ids == answer.reply.ids, "phrases": False, "pixels": 1.0}
    if [list(phrase.words) for phrase in found.phrases] != cached[0]:
        return same
    masks = phrase_masks(grounder.head, priors, index, item, cached[0], grounder.device)
    differ = (masks_of(found) != masks).mean((1, 2)).max(initial=0.0)
    return same | {"phrases": True, "pixels": float(differ)}


def grounded(head: str, priors: Priors, lam: float) -> dict[str, Any]:
    """All scenes with one head: scores, the controls', agreement with the cache, and seconds."""
    grounder = Grounder.load(head=head)
    indices = [i for i in priors.samples.where(task=["conversation"]) if i not in priors.failures]
    root = Path(priors.store.meta.soft["data_root"])
    tallies = {name: Tally() for name in ("selector", "every_noun_phrase", "every_word", "masks_of_another_scene")}
    results, seconds, same = [], [], []
    for index in [indices[0], *indices]:  # the first one warms up
        sample = priors.samples[index]
        answer = grounder.answer(root / sample.image_path, sample.prompt)
        results.append(grounder.ground(answer, lam=lam))
        seconds.append(results[-1].seconds)
        same.append(agreement(grounder, priors, index, results[-1], answer, lam))
    results, seconds, same = results[1:], seconds[1:], same[1:]
    for place, (index, found) in enumerate(zip(indices, results, strict=True)):
        sample, truth = priors.samples[index], truth_of(priors.samples[index])
        tallies["selector"].add([phrase.text for phrase in found.phrases], masks_of(found), sample, truth)
        words, nothing = [word.text for word in found.words], np.zeros((0, *truth.shape[1:]), bool)
        labels = {"selector": np.array(found.numbers), "every_noun_phrase": NounPhrases.for_scenes()(words)}
        labels["every_word"] = np.zeros(len(words), np.int64)
        for name, chosen in labels.items():
            tallies[name].add_words(words, chosen)
            if name != "selector":
                texts = [spoken([words[k] for k in run]) for run in runs_of(chosen)]
                tallies[name].add(texts, nothing, sample, truth)
        others = (results[(place + k) % len(results)] for k in range(1, len(results)))
        other = next((each for each in others if each.image.size == found.image.size), found)
        tallies["masks_of_another_scene"].add([], masks_of(other), sample, truth)
    return {
        "scores": tallies["selector"].scores(),
        "controls": {
            name: {k: v for k, v in tallies[name].scores().items() if (k in MASKS) == name.startswith("masks")}
            for name in list(tallies)[1:]
        },
        "scenes": len(results),
        "phrases": tallies["selector"].chosen,
        "true_phrases": tallies["selector"].true,
        "same": {
            "answers": mean(each["answer"] for each in same),
            "phrases": mean(each["phrases"] for each in same),
            "largest_share_of_pixels": max(each["pixels"] for each in same),
        },
        "seconds": {part: mean(each[part] for each in seconds) for part in PARTS},
        "examples": [(found.text, [phrase.text for phrase in found.phrases]) for found in results[:3]],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, and half the range where there are several."""
    return {"mean": round(mean(values), 4), "spread": round((max(values) - min(values)) / 2, 4), "seeds": len(values)}


def main(config: Config) -> dict[str, Any]:
    if not 0 < config.lam < 1:
        raise SystemExit(f"--lam {config.lam}: must lie between 0 and 1")
    cache = config.out / ("quick" if config.quick else "cache")
    priors = Priors.open(extracted(cache, "--dataset", "scenes-gcg", *(QUICK if config.quick else ())))
    found = [grounded(head, priors, config.lam) for head in config.heads]
    scores = {name: spread([each["scores"][name] for each in found]) for name in found[0]["scores"]}
    seconds = {part: round(mean(each["seconds"][part] for each in found), 4) for part in PARTS}
    same = {
        name: (max if name.startswith("largest") else min)(each["same"][name] for each in found)
        for name in found[0]["same"]
    }
    equal = same["answers"] == same["phrases"] == 1 and same["largest_share_of_pixels"] <= FEW_PIXELS
    result: dict[str, Any] = {
        **{name: scores[name]["mean"] for name in ("keyword_f1", *MASKS)},
        "live_equals_cached": equal,
        "live_and_cached": {name: round(value, 6) for name, value in same.items()},
        "seconds": seconds,
        "scores": scores,
        "controls": found[0]["controls"],
        "heads": list(config.heads),
        "lam": config.lam,
        **{name: found[0][name] for name in ("scenes", "phrases", "true_phrases")},
        "threads": torch.get_num_threads(),
        "quality_claim": not config.quick,
    }
    for text, phrases in found[0]["examples"]:
        print(f"answer:   {text}\nkeywords: {' | '.join(phrases)}\n")
    print(table(result))
    print(json.dumps(result))
    return result


def table(result: dict[str, Any]) -> str:
    """Scores with their controls, then the time of every part."""
    controls, scores = result["controls"], result["scores"]
    lines = [f"{result['scenes']} held-out scenes, λ {result['lam']}, percent", ""]
    lines += ["| | keyword F1 | precision | recall | phrase F1 | matched mIoU | mask recall |", "|---|" + "---:|" * 6]
    names = ("keyword_f1", "keyword_precision", "keyword_recall", "phrase_f1", *MASKS)
    several = len(result["heads"]) > 1
    cells = [f"{100 * scores[n]['mean']:.1f}" + f" ±{100 * scores[n]['spread']:.1f}" * several for n in names]
    lines.append(f"| **the grounder** | {' | '.join(cells)} |")
    for name in controls:
        cells = [f"{100 * controls[name][n]:.1f}" if n in controls[name] else "" for n in names]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    total = sum(result["seconds"].values())
    lines += ["", "| part | ms an image | share |", "|---|---:|---:|"]
    lines += [f"| {part} | {1000 * s:.1f} | {100 * s / total:.0f} % |" for part, s in result["seconds"].items()]
    same = result["live_and_cached"]
    lines += [
        "",
        f"live and through the cache: {100 * same['answers']:.0f} % of the answers the same, "
        f"{100 * same['phrases']:.0f} % of their phrases; masks differ in "
        f"{100 * same['largest_share_of_pixels']:.3f} % of an image's pixels at most",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
