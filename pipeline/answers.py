"""The part of `extract` before the plan: the LMM answers what is asked of it (see `stages.extract.answers`)."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import CacheError, Stopped

if TYPE_CHECKING:
    from pipeline.extract import Extract

SAVED_EVERY: Final = 5.0  # seconds, and at least twenty times as long as saving takes


def answered(args: Extract, extraction: Any, images: Any, text: Any, options: dict[str, Any]) -> dict[str, str]:
    """Have the questions among the samples answered, those that an earlier run left out of it.

    The samples have their replies from then on; in a dry run as long ones as they can get.
    text: the LMM's processor, or what stands for it in a dry run.  options: of `run_units`.
    Returns what the plan that is printed says of them.
    """
    from cache.create import require_ours
    from cache.derive import FILES
    from stages.extract.answers import Answers

    answers = Answers(extraction.cache, extraction.samples, images)
    most = args.max_answer_tokens
    if not answers.wanted:
        return {}
    if args.dry_run:
        extraction.samples = answers.supposed(extraction.samples, most, text)
        text = f"{answers.count} samples are answered first, with {most} tokens at most; so many are planned for"
        return {"answers": text}
    require_ours(extraction.cache, "priors", FILES)
    with extraction.cache.sole_writer():
        answers.load(extraction.answer_identity(most), overwrite=args.overwrite)
        if answers.missing():
            _require_no_plan(args, extraction, answers)
            _ask(answers, extraction.worker(options["threads"]), most, options)
            _free(extraction, options)
    extraction.give(answers)
    return {"answers": f"of {answers.count} samples, {answers.tokens():,} tokens: {answers.origin}"}


def _require_no_plan(args: Extract, extraction: Any, answers: Any) -> None:
    """A plan that is there was made of other answers, or of none: said now, not after all of them were given."""
    from cache.create import META

    if not args.overwrite and extraction.cache.size(META) is not None:
        left = sum(len(unit.questions) for unit in answers.missing())
        raise CacheError(
            f"{extraction.cache} was planned with other answers, or with none ({left} of {answers.count} are not in "
            f"{answers.path}): choose another --cache, or pass --overwrite to delete this one"
        )


def _ask(answers: Any, config: Any, most: int, options: dict[str, Any]) -> None:
    """Ask what was not answered yet, with a bar; what is known is saved every few seconds, and in the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from pipeline.runtime import run_units
    from pipeline.stopping import stopping
    from stages.extract.answer_units import AnswerWorker

    todo = answers.missing()
    left = sum(len(unit.questions) for unit in todo)
    reports = run_units(lambda: AnswerWorker(config, most), todo, **(options | {"in_flight": 1}))
    tokens = failed = 0
    saved, pause = time.monotonic(), SAVED_EVERY
    try:
        with stopping() as stop, logging_redirect_tqdm(), tqdm(total=left, desc="answers", unit="answer") as bar:
            for report in reports:
                answers.add(report)
                tokens += sum(len(row["ids"]) for row in report["rows"])
                failed += sum(row["error"] is not None for row in report["rows"])
                rate = tokens / max(1e-9, bar.format_dict["elapsed"])
                bar.set_postfix_str(f"{rate:.3g} tokens/s, {failed} failed", refresh=False)
                bar.update(len(report["rows"]))
                if (start := time.monotonic()) - saved > pause:
                    answers.save()
                    saved = time.monotonic()
                    pause = max(SAVED_EVERY, 20 * (saved - start))
        if stop.asked:  # and not one is left, but what comes after them
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        left = sum(len(unit.questions) for unit in answers.missing())
        raise Stopped(
            f"stopped: {left} of {answers.count} answers are left; run the same command again to go on"
        ) from None
    finally:
        answers.save()


def _free(extraction: Any, options: dict[str, Any]) -> None:
    """The model that answered makes room for the one that captures."""
    import torch

    gc.collect()
    if extraction.gpus and options["local"]:
        torch.cuda.empty_cache()
