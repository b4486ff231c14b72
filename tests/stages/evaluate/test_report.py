"""metrics.json and the other files: every number comes back, foreign and damaged files are one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import PipelineError
from stages.evaluate import report
from stages.evaluate.evaluation import Evaluation, is_evaluation, metrics, read_metrics
from stages.evaluate.pictures import draw_sheet
from stages.evaluate.report import write_report
from tests.stages.evaluate.made_up import NO_JAVA, conversation, everything, measure

FILES = ["metrics.json", "report.html", "results.md"]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    evaluation = everything()
    paths = write_report(tmp_path / "new" / "folder", evaluation)
    assert read_metrics(paths.metrics) == read_metrics(paths.metrics.parent) == evaluation
    found = json.loads(paths.metrics.read_text(encoding="utf-8"))
    assert list(found) == ["schema", "run", "results", "curves", "text_models", "failures"] and found["schema"] == 3
    first = found["results"][0]
    assert first["value"] == {"value": 0.7, "low": pytest.approx(0.68), "high": pytest.approx(0.72)}
    assert (first["protocol"], first["dataset"], first["split"], first["method"], first["group"], first["metric"]) == (
        "res-flmm", "refcoco", "val", "refined", "all", "ciou",
    )  # fmt: skip
    meteor = next(row for row in found["results"] if row["metric"] == "meteor")
    assert meteor["value"] is None and meteor["absent"] == NO_JAVA


def test_the_files_of_a_report(make_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_SHEET_ROWS", 1)
    first = write_report(tmp_path, everything(), [make_case()] * 3, [conversation()])
    assert first.page.read_text(encoding="utf-8").count('class="case"') == 4
    assert first.sheet is not None
    assert first.sheet.read_bytes() == draw_sheet([make_case()], tmp_path / "one.png").read_bytes()
    (tmp_path / "one.png").unlink()
    write_report(tmp_path, Evaluation(run={"lmm": "other"}))  # a second run leaves nothing of the first
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert read_metrics(tmp_path).run == {"lmm": "other"} and first.markdown.read_text() == ""


def test_only_its_own_folders_are_recognised(tmp_path: Path) -> None:
    assert not is_evaluation(tmp_path)
    for foreign in ("[]", '{"schema": 2}', "not JSON", "\udcff", "[" * 100_000, '{"run": {}, "results": []}'):
        (tmp_path / "metrics.json").write_text(foreign, errors="surrogateescape")
        assert not is_evaluation(tmp_path)
    for ours in ('{"schema": 2, "protocols": [], "run": {}}', '{"schema": 4, "results": [], "run": {}}'):
        (tmp_path / "metrics.json").write_text(ours)
        assert is_evaluation(tmp_path)
    write_report(tmp_path, everything())
    assert is_evaluation(tmp_path)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for bad in ({"run": {"seconds": float("nan")}}, {"run": {}, "measures": [measure(value=float("inf"))]}):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_report(tmp_path / "out", Evaluation(**bad))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_half_a_surrogate_in_a_reason_is_no_obstacle(tmp_path: Path) -> None:
    failures = {"a\udcff": "can not open b\udcff.jpg"}
    paths = write_report(tmp_path, Evaluation(run={"cache": "c\udcff"}, failures=failures))
    assert read_metrics(tmp_path).failures == failures and "b\\udcff.jpg" in paths.page.read_text(encoding="utf-8")


def change(**fields: Any) -> dict[str, Any]:
    return metrics(Evaluation(run={})) | fields


def change_result(**fields: Any) -> dict[str, Any]:
    record = metrics(Evaluation(run={}, measures=[measure()]))
    return record | {"results": [record["results"][0] | fields]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can not be read (No such file"),
        ("not JSON", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "is not of this program"),
        ('{"accuracy": 1}', "is not of this program"),
        ({"schema": 2, "protocols": [], "run": {}, "res": []}, "schema '2', this one reads 3): evaluate again"),
        (change(schema="x" * 10**6), "of another version"),
        ({"schema": 3}, "is damaged or not of this program ('run')"),
        (change(run=[]), "'run' is no object"),
        (change(run={"seconds": float("nan")}), "damaged"),
        ('{"schema": 3, "run": {"a": 1e999}}', "damaged"),
        ('{"schema": 3, "run": ' + '{"a": ' * 400 + "1" + "}" * 401, "nested too deeply"),
        (change(results={}), "'results' is no list"),
        (change(results=[1]), "has not the fields of a result"),
        (change(failures=[1]), "'failures' is no object"),
        (change(curves={"a": {"b": [[1]]}}), "not enough values"),
        (change(curves={"a": {"b": [[1, "x"]]}}), "'x' is no number"),
        (change_result(more=1), "has not the fields of a result"),
        (change_result(value="0.5"), "damaged"),
        (change_result(value={"value": True, "low": None, "high": None}), "'True' is no number"),
        (change_result(value={"value": 1e999, "low": None, "high": None}), "damaged"),
        (change_result(value={"value": 10**400, "low": None, "high": None}), "int too large"),
        (change_result(value={"value": 0.5}), "'low'"),
        (change_result(metric=None), "must be texts"),
        (change_result(images=-1), "must be counts"),
        (change_result(items="9"), "must be counts"),
    ],
)
def test_what_can_not_be_read_is_one_line(content: Any, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PipelineError) as error:
        read_metrics(tmp_path)
    line = str(error.value)
    assert says in line and "metrics.json" in line and "\n" not in line and len(line) < 600
    assert "evaluate" in line.rpartition(": ")[2]  # the cure


RECORD = metrics(
    replace(
        everything(),
        measures=[measure(), measure("meteor", None, absent="no Java")],
        curves={"png val": {"all": [(0.0, 1.0)]}},
    )
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["value", "low", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in another thing's place."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(places(json.loads(json.dumps(RECORD)))), junk=JUNK)
def test_a_record_with_junk_in_it_is_read_or_refused(place: tuple[Any, ...], junk: Any, tmp_path_factory) -> None:
    record = json.loads(json.dumps(RECORD))
    inner: Any = {"": record}
    for key in ("", *place)[:-1]:
        inner = inner[key]
    inner[("", *place)[-1]] = junk
    folder = tmp_path_factory.getbasetemp() / "junk"
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(record if place else junk))
    try:
        found = read_metrics(folder)
    except PipelineError as error:
        assert "\n" not in str(error)
    else:
        assert metrics(found)["schema"] == 3
