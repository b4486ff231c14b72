"""`run_pipeline.py ground`: the LMM answers about images, and the words of its answers get masks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from manifests.errors import DatasetError, PipelineError
from pipeline import ground_files as files
from pipeline import ground_text as text
from pipeline.train_head import prepare_out

if TYPE_CHECKING:
    from PIL import Image

    from stages.ground import Grounder, Grounding

QUESTION = "What is in the picture?"
OF_ANSWERS = ("ask", "lam", "max_answer_tokens", "own_settings", "seed")  # options that --phrase has no use for
OUT_OF_MEMORY = "memory ran out: give a smaller image, or a smaller --max-answer-tokens"
NOTE = (
    "the embedded LMM knows rendered scenes of coloured shapes and nothing else; about any other picture, "
    "a photo for one, its answer is outside of what it was trained on and to be expected to be wrong"
)


@dataclass(kw_only=True, slots=True)
class Ground:
    """Ask a frozen LMM about images: its answer, the words of it that name something, and their masks.

    Of every image --out gets NAME.json (answer, phrases with character spans, scores, boxes, masks as COCO RLE) and
    NAME.png (the image with the masks, and a legend); of the run ground.json. Stopped? The same command goes on: what
    is there of the same image, question, settings and head is kept. Exit status 0 where an image was grounded, else 2.
    """

    image: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Image files, and folders of them."""
    ask: str | None = None
    """The question; default: "What is in the picture?"."""
    phrase: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Ground these words instead, as "the red ring": nothing is asked, nothing is selected."""
    lmm: str = "tiny"
    """The LMM that the head was trained with: tiny (embedded), a preset, a folder with a checkpoint, or a HF id."""
    head: str = "tiny"
    """tiny (embedded), a folder that `train-head` made, or one of the Hugging Face Hub: hf://user/name[@revision]."""
    head_class: str | None = None
    """Whose code a head is that is none of this program's: module:Class. It is run."""
    out: Path = Path("runs/ground")
    """Folder for the results; those of an earlier run that have the same names are replaced."""
    lam: float = 0.3
    """λ, the keyword selector's threshold, in (0, 1): lower marks more words."""
    max_answer_tokens: int = 256
    """Longer answers are cut off."""
    own_settings: bool = False
    """Generate as the checkpoint's generation_config says (temperature, top-p, …) instead of greedily."""
    seed: int = 0
    """Of what is sampled, with --own-settings."""
    refiner: bool = True
    """Draw and list the masks of the mask refiner; --no-refiner: the mask decoder's. The JSON always has both."""
    side: int = 900
    """Longer side of the image in NAME.png, pixels."""
    device: str = "auto"
    """cuda, cpu or auto."""
    gpus: int = 1
    """GPUs that the LMM is spread over."""
    sam_checkpoint: Path | None = None
    """SAM's weights; default as in extract."""
    trust_remote_code: bool = False
    """Run code that comes with the LMM's checkpoint."""
    overwrite: bool = False
    """Do again what is there."""


@dataclass(kw_only=True, slots=True)
class _Run:
    """What came of the images so far."""

    results: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    kept: int = 0
    phrases: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, record: dict[str, Any], *, kept: bool) -> None:
        """record: the content of NAME.json."""
        self.results.append(f"{name}.json")
        self.phrases += len(record["phrases"])
        self.kept += kept
        for part, value in record["seconds"].items():
            self.seconds[part] = self.seconds.get(part, 0.0) + (0.0 if kept else value)

    def totals(self) -> dict[str, Any]:
        return {
            "images": len(self.results) + len(self.failures),
            "kept": self.kept,
            "phrases": self.phrases,
            "failures": len(self.failures),
            "seconds": {part: round(value, 4) for part, value in self.seconds.items()},
            "peak_gib": text.peak_gib(),
        }


def run(args: Ground) -> None:
    """Answer, mark, draw, print; see Ground."""
    from torch import OutOfMemoryError

    from stages.ground.loading import device_of

    phrases = tuple(phrase for group in args.phrase for phrase in group)
    _check(args, phrases)
    device = device_of(args.device, args.gpus)
    paths = _photos(args)
    about = _about(args, phrases)
    prepare_out(args.out, "results of ground", files.is_ours)
    files.begin(args.out)
    done, load = _Run(), cache(partial(_load, args, device))
    try:
        for name, path, several in _each(paths):
            if several:
                print(text.console(f"\n──── {text.one_line(path)}"))
            try:
                _image(args, load, about, name, path, done)
            except (DatasetError, OutOfMemoryError, MemoryError) as fault:
                reason = str(fault) if isinstance(fault, DatasetError) else OUT_OF_MEMORY
                done.failures.append({"image": str(path), "reason": text.one_line(reason)})
                if several:
                    text.complain(path, reason)
    finally:  # stopped, it says what was done
        file = files.finish(args.out, about, done.results, done.failures, done.totals())
    if not done.results:
        first = done.failures[0]["reason"]
        raise PipelineError(first if len(paths) == 1 else f"none of the {len(paths)} images was grounded: {first}")
    print(text.console(_ending(about, done, file)))
    print(json.dumps(done.totals() | {"file": str(file)}))


def _check(args: Ground, phrases: tuple[str, ...]) -> None:
    """PipelineError for what is wrong with the options, before anything is loaded."""
    if not any(args.image):
        raise PipelineError("--image: give an image file, or a folder of them")
    if not 0 < args.lam < 1:
        raise PipelineError(f"--lam {args.lam}: must lie between 0 and 1")
    if args.max_answer_tokens < 1:
        raise PipelineError(f"--max-answer-tokens {args.max_answer_tokens}: must be at least 1")
    if not 64 <= args.side <= 8192:
        raise PipelineError(f"--side {args.side}: must be between 64 and 8192 pixels")
    if not 0 <= args.seed < 2**63:
        raise PipelineError(f"--seed {args.seed}: must not be negative, nor of more than 63 bits")
    if args.phrase and not (phrases and all(phrase.strip() for phrase in phrases)):
        raise PipelineError("--phrase: give the words that name something in the image")
    if args.ask is not None and not args.ask.strip():
        raise PipelineError("--ask: the question is empty")
    without_say: tuple[str, ...] = () if args.own_settings else ("seed",)
    without_say = OF_ANSWERS if phrases else without_say
    for option in fields(args):
        if option.name in without_say and getattr(args, option.name) != option.default:
            name, where = option.name.replace("_", "-"), "with --phrase" if phrases else "without --own-settings"
            raise PipelineError(f"--{name} changes nothing {where}: leave one of them out")


def _photos(args: Ground) -> list[Path]:
    from stages.ground.photos import photos_in

    try:
        return photos_in(path for group in args.image for path in group)
    except DatasetError as fault:
        raise DatasetError(text.one_line(fault)) from None


def _about(args: Ground, phrases: tuple[str, ...]) -> dict[str, Any]:
    """What every result of this run was made with: two that agree in it are the same, but for the rounding."""
    from stages.train_head.heads.checkpoint import read_description, weights_digest
    from stages.train_head.heads.hub import fetch_head

    read_description(fetch_head(args.head))  # says what is no head
    settings: dict[str, Any] = {"question": None if phrases else args.ask or QUESTION, "phrases": list(phrases)}
    for name in OF_ANSWERS[1:]:
        settings[name] = None if phrases else getattr(args, name)
    settings |= {"refiner": args.refiner, "side": args.side}
    found = {"lmm": args.lmm, "head": args.head, "weights": weights_digest(fetch_head(args.head)), "settings": settings}
    return found | {"note": NOTE if args.lmm == "tiny" else None}


def _each(paths: list[Path]) -> Iterator[tuple[str, Path, bool]]:
    """Name, file, and whether it is one of several; then with a progress bar on stderr."""
    from tqdm import tqdm

    several = len(paths) > 1
    with tqdm(total=len(paths), desc="ground", unit="image", disable=not several) as bar:
        for name, path in zip(files.names(paths), paths, strict=True):
            bar.clear()  # the answer is printed where the bar was
            yield name, path, several
            bar.update()


def _load(args: Ground, device: str) -> Grounder:
    from stages.ground import Grounder

    found = Grounder.load(
        args.lmm,
        args.head,
        device=device,
        gpus=args.gpus,
        sam_checkpoint=args.sam_checkpoint,
        head_class=args.head_class,
        trust_remote_code=args.trust_remote_code,
    )
    if not args.phrase:
        found.require_selector()
    if args.own_settings and not found.lmm.model.generation_config.do_sample:
        print("note: this checkpoint's generation_config samples nothing: --seed has no say")
    return found


def _image(
    args: Ground, load: Callable[[], Grounder], about: dict[str, Any], name: str, path: Path, done: _Run
) -> None:
    """One image, from its file to its results. DatasetError: what is wrong with this one; others may do."""
    from stages.ground.photos import open_photo

    made_of = {"image": str(path), "sha256": files.sha256(path)} | about
    record = None if args.overwrite else files.kept(args.out, name, made_of)
    if kept := record is not None:
        spans = [(phrase["start"], phrase["end"]) for phrase in record["phrases"]]
        lines = [
            text.marked(record["text"], spans),
            "  kept: made before, of the same image with the same settings (--overwrite: do it again)",
        ]
    else:
        photo, grounder = open_photo(path), load()
        grounding, waited = _grounded(args, grounder, photo)
        record = made_of | grounding.record()
        shown = grounding if args.refiner else grounding.unrefined()
        files.write(args.out, name, record, shown, args.side)
        lines = [*text.said(shown), text.times(*waited)]
    done.add(name, record, kept=kept)
    print(
        text.console(
            "\n".join([*lines, *(f"  {text.one_line(args.out / name)}{suffix}" for suffix in (".png", ".json"))])
        )
    )


def _grounded(args: Ground, grounder: Grounder, photo: Image.Image) -> tuple[Grounding, tuple[float, float]]:
    """The answer, printed while it is said, and its masks; seconds until each. DatasetError: it failed."""
    start = time.perf_counter()
    phrases = [phrase for group in args.phrase for phrase in group]
    try:
        if phrases:
            grounding = grounder.segment(photo, phrases)
            return grounding, (0.0, time.perf_counter() - start)
        answer = grounder.answer(
            photo,
            args.ask or QUESTION,
            max_new_tokens=args.max_answer_tokens,
            own_settings=args.own_settings,
            seed=args.seed,
            on_text=text.Speech(),
        )
        answered = time.perf_counter() - start
        print("\n")
        grounding = grounder.ground(answer, lam=args.lam)
        return grounding, (answered, time.perf_counter() - start)
    except PipelineError as fault:
        raise DatasetError(str(fault)) from None


def _ending(about: dict[str, Any], done: _Run, file: Path) -> str:
    """Where the time went, the memory, and what has to be known about the results."""
    failed = f", {len(done.failures)} failed" if done.failures else ""
    kept = f", {done.kept} of them kept" if done.kept else ""
    lines = ["", *text.shares(done.seconds), ""] if any(done.seconds.values()) else [""]
    lines += [f"note: {about['note']}"] if about["note"] else []
    peak = ", ".join(f"{value:.2f} GiB {name}" for name, value in text.peak_gib().items())
    count = len(done.results) + len(done.failures)
    images = f"{count} image{'s' if count != 1 else ''}"
    return "\n".join(
        [*lines, f"ground: {images}{kept}{failed}; peak memory: {peak}", f"  results {text.one_line(file)}"]
    )
