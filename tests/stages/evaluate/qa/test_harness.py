"""lmms-eval's own POPE task and a task of one's own, on local data of POPE's format; skipped where it is not installed.

The official datasets are on the Hugging Face Hub: no test fetches them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: docs/qa.md")

from manifests.errors import PipelineError  # noqa: E402
from stages.evaluate.qa import harness  # noqa: E402
from stages.evaluate.qa.harness import ANSWERS, RESULT, Config, main  # noqa: E402
from stages.evaluate.qa.questions import scene_questions  # noqa: E402
from tests.helpers import cli  # noqa: E402

POPE = Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks over eight yes-or-no questions in POPE's format: the official one, sampled, of two images."""
    import datasets

    asked = [each for each in scene_questions(48) if each.kind == "exists"]
    columns = {
        "id": [str(i) for i in range(8)],
        "question_id": [str(i) for i in range(8)],
        "question": [each.text for each in asked],
        "answer": [each.truth.removesuffix(" .") for each in asked],
        "image_source": [each.image_id for each in asked],
        "image": [each.image for each in asked],
        "category": ["scenes"] * 8,
    }
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"image": datasets.Image()})
    folder = tmp_path_factory.mktemp("tasks")
    data = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"test": data}).save_to_disk(folder / "data")
    local = f"include: {POPE}\ndataset_path: {folder / 'data'}\ndataset_kwargs:\n  load_from_disk: true\n"
    plain = "lmms_eval_specific_kwargs:\n  default:\n    pre_prompt: ''\n    post_prompt: ''\n"
    (folder / "official.yaml").write_text(f"{local}task: scenes_official\n")
    (folder / "bare.yaml").write_text(f"{local}task: scenes_pope\n{plain}")
    (folder / "sampled.yaml").write_text(f"{local}task: scenes_sampled\ngeneration_kwargs:\n  temperature: 0.7\n")
    (folder / "missing.yaml").write_text(
        f"include: {POPE}\ndataset_path: {folder / 'gone'}\ndataset_kwargs:\n  load_from_disk: true\n"
        "task: scenes_missing\n"
    )
    return folder


def result_of(tasks: Path, out: Path, *names: str, **options: Any) -> tuple[int, dict[str, Any]]:
    code = main(Config(lmm="tiny", tasks=names, out=out, include=tasks, **options))
    return code, json.loads((out / RESULT).read_text())


def test_the_tasks_are_asked_twice_and_scored(tasks: Path, tmp_path: Path) -> None:
    code, result = result_of(tasks, tmp_path, "scenes_pope", "scenes_official")
    assert code == 0 and result["identical"] and result["differences"] == []
    assert result["questions"] == 16 and result["capture"]["prompt_passes"] == 16
    assert result["attention"] == {"off": "sdpa", "on": "attention_rows"}
    assert result["scores"]["on"] == result["scores"]["off"]
    answers = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()]
    official = [each["question"] for each in answers if each["task"] == "scenes_official"]
    assert len(official) == 8
    assert all(question.endswith("?\nAnswer the question using a single word or phrase.") for question in official)
    # lmms-eval's POPE wants the bare word; the tiny LMM says "yes ."
    assert {each["on"]["text"] for each in answers if each["task"] == "scenes_pope"} <= {"yes .", "no ."}
    assert result["scores"]["on"]["scenes_pope"]["pope_accuracy"] == 0.0


def test_a_limit(tasks: Path, tmp_path: Path) -> None:
    code, result = result_of(tasks, tmp_path, "scenes_pope", limit=3)
    assert code == 0 and result["questions"] == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("scenes_missing", "dataset of scenes_missing is not on this machine.*HF_HOME"), ("scenes_sampled", "only greedy"),
     ("no_such_task", "has no task no_such_task")],
)  # fmt: skip
def test_errors_are_one_line(tasks: Path, tmp_path: Path, name: str, message: str, capfd: Any) -> None:
    import re

    code, result = result_of(tasks, tmp_path, name)
    assert code == 2 and re.search(message, result["error"]) and "\n" not in result["error"]
    assert f"error: {result['error']}\n" in capfd.readouterr().err


def test_the_command_runs_it_in_that_environment(tasks: Path, tmp_path: Path, capfd: Any) -> None:
    options = ["--qa-tasks", "scenes_pope", "--qa-python", sys.executable, "--qa-include", tasks, "--qa-limit", "2"]
    cli("evaluate", "--task", "qa", "--questions", "2", "--out", tmp_path, *options)
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last["identical"] and last["questions"] == 4 and last["lmms_eval"]["questions"] == 2
    assert json.loads((tmp_path / "qa.json").read_text())["lmms_eval"]["versions"]["lmms-eval"]


@pytest.mark.parametrize("shown", [None, [], ["video.mp4"]])
def test_other_questions_than_of_one_image_are_refused(shown: Any) -> None:
    with pytest.raises(PipelineError, match="task pope, question 3 shows"):
        harness.only_image("pope", 3, shown)
