"""From the flags of `train-head` to an untrained head that fits a cache, and its recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import PipelineError

if TYPE_CHECKING:
    from cache.priors import Priors
    from pipeline.train_head import TrainHead
    from stages.train_head.heads.base import Head, PriorShape
    from stages.train_head.recipe import TrainConfig

PROMPTS = ("refiner", "prompt_mask", "prompt_box", "prompt_text")


def build(args: TrainHead, priors: Priors, device: str = "cpu") -> tuple[Head, TrainConfig]:
    """An untrained head that fits the cache, with SAM's weights where it has any, and the recipe.

    PipelineError: an option that the head does not have, a value out of range, or maps that the cache does not have.
    """
    import torch

    from stages.extract.sam import load_sam
    from stages.train_head.heads import head_class

    kind = head_class(args.head)
    preset = preset_of(args, priors)
    sam = priors.identity["images"]["identity"]["sam"]
    known = {field.name for field in fields(kind.Config)}
    values = dict(kind.PRESETS.get(preset, {})) | given_options(args, kind)
    if "sam" in known:
        values["sam"] = {k: v for k, v in sam.items() if k not in ("weights", "dtype", "name")}
    shape = shape_of(args, priors)
    try:
        recipe = build_recipe(args, preset, device)
        torch.manual_seed(args.seed)
        head = kind.from_values(shape, values)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"train-head: {error}") from None
    if head.refined_size is not None:
        require_sam(sam, args.sam_checkpoint)
        head.start_from(load_sam(sam["name"], args.sam_checkpoint))
    if args.init_from is not None:
        start_from(head, args, priors.identity)
    return head, recipe


def preset_of(args: TrainHead, priors: Priors) -> str:
    """--preset, auto resolved for the cache's LMM."""
    return args.preset if args.preset != "auto" else ("demo" if _lmm_maps(priors) < 128 else "paper")


def build_recipe(args: TrainHead, preset: str, device: str) -> TrainConfig:
    """The preset's recipe with what the user gave. ValueError: out of range."""
    from stages.train_head.recipe import RECIPES

    # the small heads are done before their kernels are launched: casts would only add to those
    mixed = device.startswith("cuda") and preset == "paper"
    precision = args.precision if args.precision != "auto" else ("bf16" if mixed else "float32")
    given: dict[str, Any] = {"epochs": args.epochs, "lr": args.lr}
    for name in ("batch_size", "accumulate", "ema", "seed", "validate_every"):
        given[name] = getattr(args, name)
    return replace(RECIPES[preset], precision=precision, **{n: v for n, v in given.items() if v is not None})


def given_options(args: TrainHead, kind: type[Head]) -> dict[str, Any]:
    """What the user said about the head, by the names of its config's fields. PipelineError: it has no such option."""
    options: dict[str, Any] = {name: False for name in PROMPTS if not getattr(args, name)}
    if args.input_size is not None:
        options["input_size"] = args.input_size
    for each in args.option:
        name, equals, value = each.partition("=")
        if not equals:
            raise PipelineError(f"--option {each}: give NAME=VALUE, as --option width=32")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    known = {field.name: field for field in fields(kind.Config) if field.name != "sam"}
    for name, value in options.items():
        if name not in known:
            raise PipelineError(
                f"--head {args.head} has no option {name}; it has {', '.join(sorted(known)) or 'none'}: "
                "leave it out or choose another head"
            )
        default = known[name].default
        if not _like(value, default):
            raise PipelineError(f"--option {name}={value}: give a value like its default, {json.dumps(default)}")
    return options


def _like(value: Any, default: Any) -> bool:
    """Has a value the type of an option's default? A whole number does for a float; nothing is said of other types."""
    if isinstance(default, float):
        return type(value) in (int, float)
    return not isinstance(default, bool | int | str) or type(value) is type(default)


def shape_of(args: TrainHead, priors: Priors) -> PriorShape:
    """The shape of what the head sees: all of the cache's maps, or those that --layers and --channels leave."""
    from stages.train_head.heads.base import PriorShape

    maps = chosen_maps(args, priors)
    return PriorShape(
        channels=len(maps) if maps is not None else priors.channels, layers=priors.layers, width=priors.width,
        maps=maps,
    )  # fmt: skip


def chosen_maps(args: TrainHead, priors: Priors) -> tuple[int, ...] | None:
    """Maps of the cache, in their order; None: all of them. PipelineError: there are no such maps."""
    if args.layers is None and args.channels is None:
        return None
    allowed = list(range(priors.channels))
    if args.layers is not None:
        allowed = _of_layers(args.layers, priors)
    if args.channels is None:
        return tuple(allowed)
    numbers = _numbers(args.channels, "--channels", "64 for the best 64, or 0,5,17")
    if "," not in args.channels and "-" not in args.channels:
        from stages.train_head.ranking import rank_maps

        if not 1 <= numbers[0] <= len(allowed):
            raise PipelineError(f"--channels {args.channels}: there are {len(allowed)} maps to choose from")
        scores = rank_maps(priors).scores
        return tuple(sorted(sorted(allowed, key=lambda each: -scores[each])[: numbers[0]]))
    if not set(numbers) <= set(allowed):
        raise PipelineError(f"--channels {args.channels}: the maps to choose from are {_shown(allowed)}")
    return tuple(sorted(set(numbers)))


def _of_layers(text: str, priors: Priors) -> list[int]:
    """The maps of these layers; the channels of a view are layer-major."""
    lmm = priors.identity["lmm"]
    layers, heads = lmm.get("attention_layers", lmm["layers"]), lmm["heads"]
    if priors.channels != lmm.get("views", 1) * layers * heads:
        raise PipelineError(
            "--layers: this cache was pruned, its maps are no longer those of whole layers; give --channels"
        )
    wanted = _numbers(text, "--layers", "8-15 or 0,3,5")
    if not set(wanted) <= set(range(layers)):
        raise PipelineError(f"--layers {text}: the LMM has the layers 0 to {layers - 1}")
    return [each for each in range(priors.channels) if each // heads % layers in wanted]


def _numbers(text: str, flag: str, example: str) -> list[int]:
    """ "0,3,8-10" -> [0, 3, 8, 9, 10]."""
    found: list[int] = []
    for part in text.removesuffix(",").split(","):
        first, dash, last = part.partition("-")
        if not (first.strip().isdecimal() and (not dash or last.strip().isdecimal())):
            raise PipelineError(f"{flag} {text}: give numbers, as {example}")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    if not found:
        raise PipelineError(f"{flag} {text}: give numbers, as {example}")
    return found


def _shown(numbers: Sequence[int]) -> str:
    return (
        f"{min(numbers)} to {max(numbers)}" if len(numbers) == max(numbers) - min(numbers) + 1 else str(list(numbers))
    )


def require_sam(sam: dict[str, Any], checkpoint: Path | None) -> None:
    """PipelineError unless the weights that a refiner starts from are those that made the cache's embeddings."""
    from stages.extract.sam import checkpoint_of

    path = checkpoint_of(sam["name"], checkpoint)
    if sam["weights"] != (found := _digest(path)):
        raise PipelineError(
            f"{path} is not the SAM whose embeddings the cache holds (sha256 {found[:12]}…, that one's is "
            f"{sam['weights'][:12]}…): give that one with --sam-checkpoint"
        )


@lru_cache
def _digest(path: Path) -> str:
    from stages.extract.checkpoint import file_sha256

    return file_sha256(path)


def start_from(head: Head, args: TrainHead, identity: dict[str, Any]) -> None:
    """--init-from: the weights of a stored head of the same shape, or a published checkpoint, and their provenance."""
    from stages.train_head.heads.checkpoint import load_head, require_same_priors
    from stages.train_head.heads.hub import fetch_head
    from stages.train_head.heads.published import load_published

    assert args.init_from is not None
    if Path(args.init_from).is_file():
        head.record["provenance"] = load_published(head, Path(args.init_from))
        return
    stored = load_head(fetch_head(args.init_from), type(head))
    require_same_priors(stored, identity, args.init_from)
    if stored.shape != head.shape:
        raise PipelineError(f"--init-from {args.init_from} looks at other maps than this head; give it the same ones")
    try:
        head.load_state_dict(stored.state_dict())
    except RuntimeError as error:
        raise PipelineError(
            f"--init-from {args.init_from} holds another head ({' '.join(str(error).split())[:300]})"
        ) from None
    if "provenance" in stored.record:  # a licence that binds what is made of them
        head.record["provenance"] = stored.record["provenance"]


def _lmm_maps(priors: Priors) -> int:
    """Attention maps per object that the LMM gave; a pruned cache has fewer."""
    lmm = priors.identity["lmm"]
    return int(lmm.get("views", 1) * lmm.get("attention_layers", lmm["layers"]) * lmm["heads"])
