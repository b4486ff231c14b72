"""MME, POPE, MMBench, … on the frozen LMM: the tasks of lmms-eval, asked with capture off and on.

Run by the Python of an environment in which lmms-eval and this program are importable (docs/qa.md):

    python -m stages.evaluate.qa.harness --lmm tiny --tasks pope mme --out runs/qa

It writes lmms_eval.json (scores of both runs, whether all answers are identical, each that is not) and
lmms_eval_answers.jsonl; exit status 0: identical, 1: not, 2: an error, of one line.

The interface is that of lmms-eval 0.7 (https://github.com/EvolvingLMMs-Lab/lmms-eval, `lmms_eval/api/model.py`): a
request's arguments are (context, generation_kwargs, doc_to_visual, doc_id, task, split), and an answer is its text.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import tyro
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from manifests.errors import DatasetError, PipelineError
from manifests.schema import Reply
from stages.evaluate.qa.exchanges import Exchange, equality, write_answers
from stages.evaluate.qa.speakers import Plain, off_then_on
from stages.extract.presets import resolve_lmm

RESULT: Final = "lmms_eval.json"
ANSWERS: Final = "lmms_eval_answers.jsonl"
MAX_NEW_TOKENS: Final = 1024  # where a task says nothing: what lmms-eval's own models take then


@dataclass(kw_only=True, slots=True)
class Config:
    """What is asked, and whom."""

    lmm: str
    """A preset, a folder or a Hugging Face id."""
    tasks: tuple[str, ...]
    """Names of tasks or groups of lmms-eval: pope, mme, mmbench_en_dev_static, …"""
    out: Path
    """Folder for the result and the answers."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: str | None = None
    """float32, bfloat16 or float16; default: the preset's."""
    trust_remote_code: bool = False
    """Run Python code that comes with the LMM's checkpoint."""
    include: Path | None = None
    """A folder with tasks of your own, as lmms-eval reads them."""
    limit: int | None = None
    """Only the first N questions of every task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One request of a task and what was said to it."""

    name: str
    task: str
    question: str
    reply: Reply


def model_of(speaker: Plain) -> Any:
    """The speaker as lmms-eval sees a model; `answered` holds what it was asked and said, in order."""
    from lmms_eval.api.model import lmms

    class FrozenModel(lmms):
        """Answers requests one at a time."""

        def __init__(self) -> None:
            super().__init__()
            self.answered: list[Answered] = []

        def generate_until(self, requests: Any) -> list[str]:
            from tqdm import tqdm

            return [self._answer(*request.args) for request in tqdm(requests, desc="questions", unit="question")]

        def _answer(self, context: str, kwargs: Any, visual: Any, number: Any, task: str, split: str) -> str:
            most = greedy_tokens(task, kwargs)
            image = only_image(task, number, visual(self.task_dict[task][split][number]))
            # where a task puts the image into the text itself: the prompt has a place for it already
            reply = speaker.reply(image, context.replace("<image>", "").strip(), most)
            self.answered.append(Answered(name=f"{task}/{number}", task=task, question=context, reply=reply))
            return until(reply.text, kwargs.get("until") or ())

        def loglikelihood(self, requests: Any) -> Any:
            raise unsupported(requests, "likelihoods of given answers")

        def generate_until_multi_round(self, requests: Any) -> Any:
            raise unsupported(requests, "a conversation of several rounds")

    return FrozenModel()


def unsupported(requests: Sequence[Any], what: str) -> PipelineError:
    """The error for tasks that want another thing than one answer."""
    return PipelineError(f"task {requests[0].task_name} asks for {what}: choose tasks of one answer about one image")


def greedy_tokens(task: str, kwargs: dict[str, Any]) -> int:
    """How many tokens an answer may have; PipelineError where a task wants sampled answers: two runs would differ."""
    if kwargs.get("do_sample") or (kwargs.get("temperature") or 0) > 0 or kwargs.get("num_beams", 1) != 1:
        raise PipelineError(f"task {task} asks for sampled or beam-searched answers: only greedy ones can be compared")
    return int(kwargs.get("max_new_tokens", MAX_NEW_TOKENS))


def only_image(task: str, number: Any, visuals: Any) -> Image.Image:
    """The one image of a question, RGB; PipelineError where there is none, several, or something else."""
    if len(visuals or ()) != 1 or not isinstance(visuals[0], Image.Image):
        kinds = ", ".join(type(visual).__name__ for visual in visuals or ()) or "nothing"
        raise PipelineError(f"task {task}, question {number} shows {kinds}: choose tasks of one answer about one image")
    return visuals[0].convert("RGB")


def until(text: str, stops: str | Sequence[str]) -> str:
    """The text up to the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


def scores(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, of what `simple_evaluate` returns: its metrics are called "name,filter"."""
    found = {}
    for task, metrics in results["results"].items():
        values = {
            key.removesuffix(",none"): float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and "_stderr" not in key
        }
        if values:
            found[task] = values
    return found


def ask(config: Config, speaker: Plain, manager: Any, out: Path) -> tuple[list[Answered], dict[str, Any]]:
    """All the tasks once. Raises PipelineError where a dataset can not be had."""
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    model = model_of(speaker)
    try:
        results = simple_evaluate(
            model,
            tasks=list(config.tasks),
            task_manager=manager,
            limit=config.limit,
            log_samples=False,
            bootstrap_iters=0,
            batch_size=1,
            cli_args=Namespace(output_path=str(out), process_with_media=False),  # some tasks write files of their own
        )
    except RetryError as error:  # lmms-eval tries to load a dataset several times, and nothing else
        cause = error.last_attempt.exception()
        raise DatasetError(
            f"a dataset of {', '.join(config.tasks)} is not on this machine and can not be fetched ({first(cause)}): "
            "run it where there is a network, after `hf auth login`, or bring the Hugging Face cache (HF_HOME) here"
        ) from None
    if results is None or not model.answered:
        raise PipelineError(f"{', '.join(config.tasks)}: no question was asked")
    return model.answered, scores(results)


def first(error: BaseException | None) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def check(config: Config) -> dict[str, Any]:
    """Both runs; the content of lmms_eval.json."""
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(config.include) if config.include else None)
    if unknown := [name for name in config.tasks if name not in manager.all_tasks]:
        raise PipelineError(f"lmms-eval {version('lmms-eval')} has no task {', '.join(unknown)}: see `lmms-eval tasks`")
    preset = resolve_lmm(config.lmm, trust_remote_code=config.trust_remote_code)
    both = off_then_on(
        preset, config.device, config.dtype, lambda name, speaker: ask(config, speaker, manager, config.out / name)
    )
    (off, off_scores), (on, on_scores) = both.off, both.on
    exchanges = [
        Exchange(name=a.name, task=a.task, question=a.question, on=b.reply, off=a.reply)
        for a, b in zip(off, on, strict=True)
        if a.name == b.name and a.question == b.question
    ]
    if len(exchanges) != len(off):
        raise PipelineError("lmms-eval asked other questions the second time: the answers can not be compared")
    write_answers(config.out / ANSWERS, exchanges)
    return {
        **equality(exchanges),
        "tasks": list(config.tasks),
        "attention": both.attention,
        "capture": both.capture,
        "scores": {"on": on_scores, "off": off_scores},
        "versions": {name: version(name) for name in ("lmms-eval", "transformers", "torch", "datasets")},
    }


def main(config: Config) -> int:
    """Run the check and file its result, an error as {"error": one line}; returns the exit status."""
    disable_progress_bar()
    config.out.mkdir(parents=True, exist_ok=True)
    try:
        version("lmms-eval")
        result = check(config)
    except PackageNotFoundError:
        result = {"error": f"{sys.executable} has no lmms-eval: {sys.executable} -m pip install lmms-eval"}
    except PipelineError as error:
        result = {"error": str(error)}
    (config.out / RESULT).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if "error" in result:
        sys.stderr.write(f"error: {result['error']}\n")
        return 2
    return 0 if result["identical"] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
