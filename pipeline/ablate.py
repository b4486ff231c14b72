"""`run_pipeline.py ablate`: what does each part of the head, and of the priors, bring? One command, one table.

run_pipeline.py ablate --quick --only no_refiner mask --cache runs/cache --out runs/ablation
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import PipelineError, Stopped

if TYPE_CHECKING:
    from cache.priors import Priors
    from pipeline.comparison import Condition
    from pipeline.comparison_table import Found

SINGLE_LAYERS: Final = 8  # an LMM of so many layers at most gets a row for each
FEWEST_MAPS: Final = 3
MOST_HALVINGS: Final = 5
RESULT: Final = "ablation.json"


@dataclass(kw_only=True, slots=True)
class Ablate:
    """Train and evaluate the head with parts of it, or of the priors, left out; several seeds; one table.

    Every map is chosen on training samples, every number is of held-out splits. Killed? The same command goes on.
    """

    cache: str = "runs/cache"
    """A complete cache: a folder, s3://bucket/prefix, or an .h5 file that `cache export` made."""
    images: str | None = None
    """Its image cache, if it is no longer where extraction or the export put it."""
    out: Path = Path("runs/ablation")
    """Folder for finished runs, ablation.json and the cache of the second extraction."""
    only: tuple[str, ...] | None = None
    """Only these rows (an unknown name lists them); "all", which the others are compared with, is always there."""
    seeds: int = 3
    """Runs of every row."""
    epochs: int | None = None
    """Passes over the training samples; default: the preset's."""
    device: str = "auto"
    """cuda, cpu or auto."""
    processes: int = 2
    """Runs side by side, one CPU thread each; on a GPU they share it."""
    merge: bool = True
    """Compare the mean over an object's words with the maximum: that takes a second extraction."""
    extract: str = ""
    """Options of the second extraction that differ from the first one's: --extract="--lmm DIR --data-root DIR"."""
    sam_checkpoint: Path | None = None
    """SAM's weights that the refiner starts from; default as in extract."""
    quick: bool = False
    """One seed, one epoch, in OUT/quick: it claims nothing."""


def run(args: Ablate) -> None:
    """Say what will be run, run what is missing, print the table and, as the last line, everything as JSON."""
    from cache.priors import Priors
    from pipeline.comparison import Job, compare
    from pipeline.comparison_table import table, write_json
    from pipeline.train_head import choose_device, prepare_out

    if args.quick:
        args = replace(args, out=args.out / "quick", seeds=1, epochs=1)
    for name in ("seeds", "processes"):
        if getattr(args, name) < 1:
            raise PipelineError(f"--{name} {getattr(args, name)}: must be at least 1")
    choose_device(args.device)
    priors = Priors.open(args.cache, images_dir=args.images)
    chosen = _wanted(args, conditions(args, priors))
    prepare_out(
        args.out, "ablation", lambda out: (out / RESULT).exists() or [p.name for p in out.iterdir()] == ["quick"]
    )
    if not (args.out / RESULT).exists():  # from now on the folder is ours, whatever happens
        write_json(args.out / RESULT, record(args, priors, chosen, {}))
    chosen, notes = _prepared(args, priors, chosen)
    print("\n".join([*notes, f"rows: {', '.join(chosen)}; {args.seeds} seed(s) each"]), flush=True)

    def result(found: Found) -> dict[str, Any]:
        return record(args, priors, chosen, found) | {"notes": notes}

    given: dict[str, Any] = {"out": args.out, "epochs": args.epochs, "device": args.device}
    jobs = [Job(condition=each, seed=seed, **given) for seed in range(args.seeds) for each in chosen.values()]
    done = result(compare(jobs, args.processes, lambda found: write_json(args.out / RESULT, result(found))))
    write_json(args.out / RESULT, done)
    print(f"\nheld-out samples, percent, mean and half the range of {args.seeds} seed(s); change: to all, seed by seed")
    print(table(done["rows"], {name: each.title for name, each in chosen.items()}))
    print("\n".join([*notes, f"result: {args.out / RESULT}"]))
    print(json.dumps(done))


def conditions(args: Ablate, priors: Priors) -> dict[str, Condition]:
    """Every row of the table for this cache. "channels" is still a number of maps, the other merge's cache not made."""
    from pipeline.comparison import Condition
    from pipeline.second_extraction import other_merge

    lmm, merge = priors.identity["lmm"], priors.identity["merge"]
    size = _preset_size(priors)
    everything = f"all: mask, box and text, {priors.channels} maps at {size}x{size}, {merge} over words"
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "all": (everything, {}),
        "no_refiner": ("no refiner", {"refiner": False}),
        "mask": ("mask", {"prompt_box": False, "prompt_text": False}),
        "mask_box": ("mask + box", {"prompt_text": False}),
        "box_text": ("box + text (no mask)", {"prompt_mask": False}),
        "text": ("text", {"prompt_mask": False, "prompt_box": False}),
    }
    layers = lmm.get("attention_layers", lmm["layers"])
    if priors.channels == lmm.get("views", 1) * layers * lmm["heads"]:  # else pruned: there are no whole layers
        table |= _layer_rows(layers)
    grid = max(priors.grid)
    sizes = {"native": (f"maps at {grid}x{grid}, the LMM's grid", 0), "size_64": ("maps at 64x64", 64)}
    table |= {
        n: (title, {"input_size": side}) for n, (title, side) in sizes.items() if max(grid, side) != max(grid, size)
    }
    counts = [priors.channels >> halvings for halvings in range(1, MOST_HALVINGS + 1)]
    table |= {f"best_{k}": (f"the best {k} maps", {"channels": str(k)}) for k in counts if k >= FEWEST_MAPS}
    other = other_merge(merge)
    table[f"merge_{other}"] = (f"{other} over words", {})
    common: dict[str, Any] = {"cache": args.cache, "images": args.images}
    sam = {"sam_checkpoint": args.sam_checkpoint} if args.sam_checkpoint else {}
    return {n: Condition(name=n, title=title, **common, options=own | sam) for n, (title, own) in table.items()}


def _layer_rows(layers: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Thirds of the layers, and single ones where there are few."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for third, name in enumerate(("first", "middle", "last") if layers >= 3 else ()):
        first, end = round(third * layers / 3), round((third + 1) * layers / 3)
        span = f"{first}-{end - 1}" if end - first > 1 else f"{first}"
        rows[f"layers_{name}"] = (f"layers {span} ({name} third)", {"layers": span})
    known = [options["layers"] for _, options in rows.values()]
    if 1 < layers <= SINGLE_LAYERS:
        rows |= {f"layer_{n}": (f"layer {n}", {"layers": f"{n}"}) for n in range(layers) if f"{n}" not in known}
    return rows


def _preset_size(priors: Priors) -> int:
    """The side to which the head's preset resizes maps."""
    from pipeline.head_options import preset_of
    from pipeline.train_head import TrainHead
    from stages.train_head.heads import head_class

    plain = TrainHead()
    kind = head_class(plain.head)
    values = kind.PRESETS.get(preset_of(plain, priors), {})
    return int(values.get("input_size", kind.Config().input_size))


def _wanted(args: Ablate, known: dict[str, Condition]) -> dict[str, Condition]:
    """The rows of --only, and "all"; every row without it. PipelineError: there is no such row."""
    if args.only is None:
        return {n: each for n, each in known.items() if args.merge or not n.startswith("merge_")}
    if not args.merge and (both := [name for name in args.only if name.startswith("merge_")]):
        raise PipelineError(f"--only {' '.join(both)} and --no-merge contradict each other; leave one of them out")
    if unknown := [name for name in args.only if name not in known]:
        raise PipelineError(f"--only {' '.join(unknown)}: the rows for {args.cache} are {', '.join(known)}")
    return {name: each for name, each in known.items() if name == "all" or name in args.only}


def _prepared(args: Ablate, priors: Priors, chosen: dict[str, Condition]) -> tuple[dict[str, Condition], list[str]]:
    """The rows with their maps (the best ones on training samples) and caches; a note for each that can not be made."""
    from pipeline.second_extraction import second_cache
    from stages.train_head.ranking import rank_maps

    found, notes = {}, []
    ranking = rank_maps(priors) if any(name.startswith("best_") for name in chosen) else None
    for name, each in chosen.items():
        if ranking is not None and name.startswith("best_"):
            maps = ranking.best(int(each.options["channels"]))
            each = replace(each, options=each.options | {"channels": ",".join(map(str, maps))})
        if name.startswith("merge_"):
            try:
                cache = second_cache(args, priors)
            except Stopped:
                raise
            except PipelineError as error:
                notes.append(f"{name} is left out: {error}")
                continue
            each = replace(each, cache=cache, images=None)
        found[name] = each
    return found, notes


def record(args: Ablate, priors: Priors, chosen: dict[str, Condition], found: Found) -> dict[str, Any]:
    """Everything as JSON; rows whose seeds are not all done yet are not in it."""
    from pipeline.comparison_table import about, summaries
    from pipeline.head_options import preset_of
    from pipeline.train_head import TrainHead
    from stages.train_head.recipe import RECIPES

    rows = {}
    for name, each in chosen.items():
        if row := summaries(found, name, args.seeds, baseline="all"):
            options = {key: str(value) if isinstance(value, Path) else value for key, value in each.options.items()}
            rows[name] = {"title": each.title, "cache": each.cache, "options": options, **row}
    return {
        "command": "ablate",
        "cache": args.cache,
        "lmm": priors.store.meta.soft.get("lmm", "unknown"),
        "rows": rows,
        "complete": len(rows) == len(chosen),
        "recipe": {"seeds": args.seeds, "epochs": args.epochs or RECIPES[preset_of(TrainHead(), priors)].epochs},
        **about(args.device, args.processes),
        "quality_claim": not args.quick,
    }
