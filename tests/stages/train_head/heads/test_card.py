"""Model cards: what is known is in them, what is not is not, and what comes from data stays data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from manifests.errors import ModelError
from stages.extract.presets import TINY
from stages.train_head.heads.base import Head
from stages.train_head.heads.card import model_card
from stages.train_head.heads.grounding_head import GroundingHead
from tests.stages.train_head.heads.known_heads import make_evaluation, make_head


def rows(text: str) -> list[list[str]]:
    """The cells of every table's line."""
    return [line.strip("| ").replace("\\|", "¦").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_it_says_whose_priors_data_recipe_and_scores() -> None:
    head = make_head()
    head.evaluation = make_evaluation()
    card = model_card(head, "ann/head")
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf" and card.data.license == "other"
    assert card.data.license_name == "unspecified by the author"
    for words in ("8b7c" * 16, "3ea1" * 16, "`\"bfloat16\"`", "`vit_l`", "Describe \\| it.", "6 steps, 1 worker(s)",
                  "1 of\n7 samples failed", "--head hf://ann/head --out",
                  "extract --lmm llava --dtype bfloat16 --merge mean --sam vit_l", "share images"):  # fmt: skip
        assert words in card.text
    table = rows(card.text)
    assert ["refcoco", "train", "referring", "10", "31", "1"] in table
    assert ["2", "6", "3.100", "0.350"] in table
    for row in head.evaluation["results"]:
        if row["metric"] == "ciou" and row["group"] == "all":
            line = next(cells for cells in table if cells[:2] == ["refcoco testA", row["method"]])
            assert line[2].startswith(f"{100 * row['value']['value']:.1f} [") and line[-2:] == ["5", "1"]
    methods = [cells[1] for cells in table if cells[0] == "png val"]  # the baselines too, other thresholds not
    assert methods == ["refined", "coarse", "selector λ=0.3", "every noun phrase", "lexicon"]
    assert ["dataset", "method", "ciou", "miou", *(f"p@0.{t}" for t in range(5, 10)), "items", "failed"] in table
    recall = next(cells for cells in table if cells[:2] == ["png val", "refined"])
    assert recall[2].startswith("85.0") and recall[6] == "–" and len(recall) == 2 + 5 + 2
    assert "`res-flmm`" in card.text and "`keywords`" in card.text
    kinds = {each.metric_type for each in card.data.eval_results}
    assert kinds == {"ciou", "miou", "f1_word", *(f"average_recall_{g}" for g in ("all", "thing", "stuff", "singular"))}


def test_what_is_not_known_is_left_out() -> None:
    head = make_head()
    head.priors, head.record = None, {}
    card = model_card(head)
    assert "No evaluation was published" in card.text and "Not recorded" in card.text
    for words in (
        "## Data",
        "## Recipe",
        "### Validation",
        "SAM, whose",
        "Prompt",
        "unknown",
        "None",
    ):
        assert words not in card.text
    assert card.data.eval_results is None and card.data.base_model is None


def test_imported_weights_keep_their_licence_and_origin() -> None:
    head = make_head()
    head.record = {"command": "import-head", "license": "mit",
                   "provenance": {"source": "flmm.pth", "licence": "S-Lab License 1.0 (non-commercial)"}}  # fmt: skip
    card = model_card(head)
    assert card.data.license == "other" and card.data.license_name == "S-Lab License 1.0 (non-commercial)"
    assert "flmm.pth" in card.text and "binds this head too" in card.text and "mit" not in card.text.split()
    head.record = {"license": "cc-by-4.0"}
    assert (model_card(head).data.license, model_card(head).data.license_name) == ("cc-by-4.0", None)


@pytest.mark.parametrize(
    ("lmm", "option", "title"),
    [
        (str(TINY / "lmm"), "--lmm tiny", "for tiny"),
        ("/home/ann/models/llava", "--lmm LMM ", "for llava"),
        ("unknown", "--lmm LMM ", "head\n"),
        ("org/new", "--lmm org/new ", "for org/new"),
    ],
)
def test_the_lmm_is_named_without_this_machines_paths(lmm: str, option: str, title: str) -> None:
    head = make_head()
    head.record["lmm"] = lmm
    card = model_card(head)
    assert f"extract {option}" in card.text and title in card.text and "/home" not in card.text
    assert card.data.base_model is None  # nothing that only may be an id


def test_text_from_data_can_not_become_markup_template_or_metadata() -> None:
    class Own(GroundingHead):  # its name in the record becomes an option in a command
        pass

    head, evil = make_head(), "{{ 7 * 7 }} | <script>x</script> [a](http://b)\n---\nlicense: mit\n```bash\nrm"
    head.evaluation = make_evaluation()
    head.evaluation["results"][0]["dataset"] = head.record["data"][0]["dataset"] = head.record["prompts"][0] = evil
    head.record |= {"lmm": evil, "head": evil, "license": evil}
    head.__class__ = Own
    card = model_card(head, "ann/head")
    assert "--head-class ___7___7____" in card.text and card.data.license == evil and "49" not in card.text.split()
    body = re.sub("`[^`\n]+`", "", re.sub(r"\\.", "", card.text))  # without what is escaped, and what is shown as code
    assert "<script>" not in body and "](http:" not in body
    assert card.text.count("\n```bash\n") == 1 and "\nrm" not in card.text
    assert ModelCard(card.content).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize(
    ("record", "evaluation"),
    [
        ({"data": [{"dataset": "x"}]}, None),
        ({"recipe": [1]}, None),
        ({}, {"results": [{}]}),
        ({}, {"png": 3}),
        ({}, {}),
    ],
)
def test_a_record_of_another_make_is_one_line(record: dict, evaluation: dict | None) -> None:
    head = make_head()
    head.record, head.evaluation = record, evaluation
    if evaluation == {}:
        assert "No evaluation" in model_card(head).text
        return
    with pytest.raises(ModelError, match="no model card for this head") as error:
        model_card(head)
    assert "\n" not in str(error.value)


def test_a_card_that_was_edited_stays(tmp_path: Path) -> None:
    make_head().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    Head.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
