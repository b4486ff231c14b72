"""The report: hostile text stays text, nothing is loaded from elsewhere, every file says the same numbers."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluate import report
from stages.evaluate.bootstrap import Estimate
from stages.evaluate.keywords import WordResult, summarise_chooser, summarise_keywords, sweep_keywords
from stages.evaluate.pictures import draw_sheet
from stages.evaluate.png import summarise_png
from stages.evaluate.report import Evaluation, is_evaluation, markdown, metrics, page, write_report
from stages.evaluate.res import summarise_res

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)>\" & 'ring'"


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture
def evaluation(make_object, make_missed) -> Evaluation:
    results = [make_object(10 * k, 100, 90, image_id=f"i{k}", is_thing=k % 2 == 0) for k in range(8)]
    results.append(make_missed(90, sample_id=HOSTILE, image_id="i9"))
    words = [
        WordResult(
            sample_id=str(k),
            dataset="scenes-png" if k < 4 else "shifted-png",
            split="val",
            image_id=str(k),
            words=("the", "ring", "."),
            truth=np.array([0, 0, -1]),
            scores=np.array([0.2 * k, 0.9, 0.1]),
        )
        for k in range(5)
    ]
    return Evaluation(
        run={"lmm": "tiny", "head": HOSTILE, "lam": 0.3, "seconds": 1.5, "identity": {"cache": {"weights": HOSTILE}}},
        res=[*summarise_res(results), *summarise_res(results, "coarse")],
        png=summarise_png([replace(r, dataset="png") for r in results]),
        keywords=[
            summarise_keywords(words[:4], 0.3),
            summarise_chooser(words[:4], "nothing", lambda w: np.full(len(w), -1)),
            summarise_keywords(words[4:], 0.3),
        ],
        sweep=[*sweep_keywords(words[:4]), *sweep_keywords(words[4:])],
        failures={HOSTILE: HOSTILE},
    )


def test_hostile_text_stays_text(evaluation: Evaluation, make_case) -> None:
    html = page(evaluation, [make_case(caption=HOSTILE, kind="best")])
    reader = Reader(html)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in reader.tags}
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]
    shown = "".join(reader.text)
    assert shown.count("<script>alert('x')</script>") >= 5  # title, heading, caption, failure, identity


def test_the_page_loads_nothing(evaluation: Evaluation, make_case) -> None:
    html = page(evaluation, [make_case(), make_case()])
    reader = Reader(html)
    assert reader.attributes("href") == reader.attributes("srcset") == []
    sources = reader.attributes("src")
    assert len(sources) == 6  # two cases of image, truth and mask
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 240)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_metrics_json_is_plain_json_with_all_the_numbers(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = write_report(tmp_path / "new" / "folder", evaluation)
    found = json.loads(paths.metrics.read_text(encoding="utf-8"))
    assert found["protocols"] == ["flmm", "keywords", "png"]
    assert found["run"]["identity"] == {"cache": {"weights": HOSTILE}}
    refined, coarse = found["res"]
    assert (refined["which"], coarse["which"]) == ("refined", "coarse")
    assert refined["ciou"]["value"] == pytest.approx(280 / 890)
    assert refined["ciou"]["low"] < refined["ciou"]["value"] < refined["ciou"]["high"]
    assert (refined["objects"], refined["failed"], found["failed_samples"]) == (9, 1, 1)
    assert found["failures"] == {HOSTILE: HOSTILE}
    assert found["png"][0]["groups"]["plural"]["average_recall"] is None
    assert len(found["png"][0]["thresholds"]) == len(found["png"][0]["groups"]["all"]["recall"])
    assert found["keywords"][1]["word"]["precision"] is None
    assert len(found["keyword_sweep"]) == 2 * 19
    assert [row["dataset"] for row in found["keywords"]] == ["scenes-png", "scenes-png", "shifted-png"]


def test_markdown_shows_the_numbers(evaluation: Evaluation) -> None:
    text = markdown(evaluation)
    tables = [table.splitlines() for table in text.strip().split("\n\n")]
    assert [len(table) - 2 for table in tables] == [2, 1, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    row = evaluation.res[0]
    assert f"| {100 * row.ciou.value:.1f} [{100 * row.ciou.low:.1f}, {100 * row.ciou.high:.1f}] |" in tables[0][2]
    assert "| – | – |" not in tables[0][2] and "selector (λ = 0.3)" in tables[2][2]
    assert [line.split(" | ")[0] for line in tables[2][2:]] == [
        "| scenes-png val",
        "| scenes-png val",
        "| shifted-png val",
    ]
    assert "| P@0.5 | P@0.6 | P@0.7 | P@0.8 | P@0.9 |" in tables[0][0]
    assert f"| {' | '.join(f'{100 * p:.1f}' for p in row.precision_at.values())} | 9 | 1 |" in tables[0][2]


def test_the_page_shows_the_numbers(evaluation: Evaluation) -> None:
    row = replace(evaluation.res[0], ciou=Estimate(value=0.1234, low=0.0567, high=0.2346))
    html = page(replace(evaluation, res=[row]))
    assert '<td class="n">12.3<small>5.7 – 23.5</small></td>' in html
    assert "Recall, png val" in html and html.count("<polyline") == 3 + 2 * 4
    assert "threshold, scenes-png val" in html and "threshold, shifted-png val" in html


def test_a_head_without_a_refiner_has_headline_numbers_and_a_recall_chart(evaluation: Evaluation) -> None:
    both, coarse = (
        replace(
            evaluation, res=res, png=[replace(r, which=res[-1].which) for r in evaluation.png], keywords=[], sweep=[]
        )
        for res in (evaluation.res, evaluation.res[1:])
    )
    html = page(coarse)
    assert "Recall, png val" in html and html.count("<polyline") == 3
    shown = "".join(Reader(html).text).split("Referring expressions")[0]
    assert "cIoU" in shown and "average recall" in shown
    assert page(both).count("<span>refcoco val</span>") == 1  # coarse rows are no headline where there are refined ones


def test_an_empty_evaluation_still_reports(tmp_path: Path) -> None:
    paths = write_report(tmp_path, Evaluation(run={}))
    assert paths.sheet is None
    assert "What was run" in paths.page.read_text(encoding="utf-8")
    assert metrics(Evaluation(run={}))["protocols"] == []


def test_the_page_has_all_cases_and_the_sheet_the_first(
    evaluation: Evaluation, make_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_SHEET_ROWS", 1)
    paths = write_report(tmp_path, evaluation, [make_case()] * 3)
    assert paths.page.read_text(encoding="utf-8").count('class="case"') == 3
    assert paths.sheet is not None
    assert paths.sheet.read_bytes() == draw_sheet([make_case()], tmp_path / "one.png").read_bytes()


def test_a_second_run_leaves_nothing_of_the_first(evaluation: Evaluation, make_case, tmp_path: Path) -> None:
    first = write_report(tmp_path, evaluation, [make_case()])
    assert first.sheet is not None and first.sheet.exists()
    write_report(tmp_path, Evaluation(run={"lmm": "other"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html", "results.md"]
    assert json.loads(first.metrics.read_text(encoding="utf-8"))["run"] == {"lmm": "other"}


def test_only_its_own_folders_are_recognised(evaluation: Evaluation, tmp_path: Path) -> None:
    assert not is_evaluation(tmp_path)
    for foreign in ("[]", '{"schema": 2}', "not JSON", "\udcff"):
        (tmp_path / "metrics.json").write_text(foreign, errors="surrogateescape")
        assert not is_evaluation(tmp_path)
    write_report(tmp_path, evaluation)
    assert is_evaluation(tmp_path)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(tmp_path / "out", Evaluation(run={"seconds": float("nan")}))
    assert not (tmp_path / "out").exists()
