"""`run_pipeline.py evaluate --task qa`: does the frozen LMM answer the same with attention capture on and off?"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from manifests.errors import PipelineError
from pipeline.train_head import choose_device, prepare_out

RESULT: Final = "qa.json"
ANSWERS: Final = "answers.jsonl"
ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True, slots=True)
class Questions:
    """What --task qa asks, and whom."""

    lmm: str = "tiny"
    """Preset (see `lmms`), a folder with a checkpoint, or a Hugging Face id."""
    dtype: str | None = None
    """float32, bfloat16 or float16 for the LMM; default: the preset's."""
    trust_remote_code: bool = False
    """Run Python code that comes with the LMM's checkpoint. Read it first."""
    questions: int = 120
    """How many of the built-in questions about rendered scenes."""
    qa_tasks: tuple[str, ...] = ()
    """Tasks of lmms-eval to be asked, too (mme pope …, or mme,pope); docs/qa.md."""
    qa_python: Path | None = None
    """The Python of an environment that has lmms-eval and this program's packages."""
    qa_include: Path | None = None
    """A folder with lmms-eval tasks of your own."""
    qa_limit: int | None = None
    """Only the first N questions of every task of lmms-eval."""


def run_qa(args: Questions, out: Path, device: str) -> None:
    """Ask, compare, write qa.json and answers.jsonl; PipelineError at the end where an answer differs."""
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from stages.evaluate.qa.exchanges import write_answers
    from stages.evaluate.qa.scenes import check_scenes
    from stages.extract.presets import resolve_lmm

    start = time.perf_counter()
    tasks = [name for given in args.qa_tasks for name in given.split(",") if name]
    if args.questions < 1 or (args.qa_limit is not None and args.qa_limit < 1):
        raise PipelineError("--questions and --qa-limit must be at least 1")
    if bool(tasks) != bool(args.qa_python):
        raise PipelineError(
            "--qa-tasks and --qa-python belong together: tasks of lmms-eval, and the Python that has it (docs/qa.md)"
        )
    preset = resolve_lmm(args.lmm, trust_remote_code=args.trust_remote_code)
    dtype, device = args.dtype or preset.dtype, choose_device(device)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise PipelineError(f"--dtype {dtype}: float32, bfloat16 or float16")
    prepare_out(out, "answers", lambda folder: (folder / ANSWERS).is_file())
    for earlier in (RESULT, "lmms_eval.json", "lmms_eval_answers.jsonl"):  # no claim may outlive a run that fails
        (out / earlier).unlink(missing_ok=True)
    disable_progress_bar()  # of loading weights
    check = check_scenes(
        preset,
        args.questions,
        device=device,
        dtype=dtype,
        progress=lambda questions: tqdm(questions, desc="questions", unit="question"),
    )
    write_answers(out / ANSWERS, check.exchanges)
    harness = run_harness(args, tasks, out, device, dtype) if tasks else None
    parts = [check.about] + ([harness] if harness else [])
    result = {
        "lmm": args.lmm,
        "source": preset.source,
        "dtype": dtype,
        "device": device,
        "identical": all(part["identical"] for part in parts),
        "questions": sum(part["questions"] for part in parts),
        "different": sum(len(part["differences"]) for part in parts),
        "scenes": check.about,
        "lmms_eval": harness,
        "results": [asdict(measure) for measure in check.measures],
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / RESULT).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))
    print(json.dumps(summary(result) | {"file": str(out / RESULT)}), flush=True)
    if not result["identical"]:
        raise PipelineError(
            f"{result['different']} of {result['questions']} answers of {args.lmm} differ with capture on and off: "
            f"{out / RESULT} lists them as differences"
        )


def run_harness(args: Questions, tasks: list[str], out: Path, device: str, dtype: str) -> dict[str, Any]:
    """The tasks of lmms-eval in an environment of its own: its lmms_eval.json; PipelineError where it fails."""
    result = out / "lmms_eval.json"
    result.unlink(missing_ok=True)
    command = [str(args.qa_python), "-m", "stages.evaluate.qa.harness", "--lmm", args.lmm, "--tasks", *tasks]
    command += ["--out", str(out), "--device", device, "--dtype", dtype]
    command += ["--trust-remote-code"] * args.trust_remote_code
    command += ["--include", str(args.qa_include)] if args.qa_include else []
    command += ["--limit", str(args.qa_limit)] if args.qa_limit else []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {"LOGURU_LEVEL": "WARNING"} | os.environ | {"PYTHONPATH": path}
    try:
        # what tasks print goes where progress goes: the last line of this program's output is its result
        code = subprocess.run(command, env=environment, stdout=2, check=False).returncode
    except OSError as error:
        raise PipelineError(f"--qa-python {args.qa_python} can not be run ({error.strerror}): docs/qa.md") from None
    if not result.is_file():
        raise PipelineError(
            f"{args.qa_python} could not run lmms-eval's tasks (exit status {code}): the reason is printed above; "
            "docs/qa.md says what its environment needs"
        )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise PipelineError(found["error"])
    return found


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The last line: what is claimed, in one object."""
    right = {
        measure["group"]: round(measure["value"]["value"], 4)
        for measure in result["results"]
        if measure["method"] == "capture on" and measure["value"]
    }
    harness = result["lmms_eval"]
    return {
        "identical": result["identical"],
        "questions": result["questions"],
        "different": result["different"],
        "accuracy": right,
        "lmms_eval": harness and {key: harness[key] for key in ("questions", "identical", "scores")},
    }


def table(result: dict[str, Any]) -> str:
    """Accuracy and scores with capture on and off, and every difference."""
    lines = [f"| {result['lmm']} | questions | capture on | capture off |", "|---|---:|---:|---:|"]
    shown: dict[str, dict[str, str]] = {}
    for measure in result["results"]:
        if measure["value"]:
            row = shown.setdefault(measure["group"], {"items": str(measure["items"])})
            row[measure["method"]] = f"{100 * measure['value']['value']:.1f}"
    lines += [
        f"| scenes, {group} (accuracy, %) | {row['items']} | {row['capture on']} | {row['capture off']} |"
        for group, row in shown.items()
    ]
    if harness := result["lmms_eval"]:
        for task, metrics in harness["scores"]["on"].items():
            off = harness["scores"]["off"].get(task, {})
            lines += [
                f"| {task}, {name} | | {v:.4g} | {off.get(name, float('nan')):.4g} |" for name, v in metrics.items()
            ]
    parts = [part for part in (result["scenes"], harness) if part]
    for different in (each for part in parts for each in part["differences"]):
        lines.append(
            f"differs: {different['name']}: {different['on']['text']!r} (on), {different['off']['text']!r} (off)"
        )
    capture, attention = result["scenes"]["capture"], result["scenes"]["attention"]
    same = "all identical" if result["identical"] else f"{result['different']} DIFFERENT"
    lines.append(
        f"\n{result['questions']} questions, answers with capture on and off: {same}, token by token\n"
        f"on: {attention['on']}, {capture['rows']} rows of {capture['layers']} layers x {capture['heads']} heads "
        f"captured beside {result['scenes']['questions']} answers about scenes; off: {attention['off']}, loaded plainly"
    )
    return "\n".join(lines)
