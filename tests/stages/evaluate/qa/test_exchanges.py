"""What counts as the same answer, and what is filed of answers that are not."""

from __future__ import annotations

import json
from pathlib import Path

from manifests.schema import Reply
from stages.evaluate.qa.exchanges import Exchange, equality, write_answers


def reply(*ids: int, finished: bool = True, text: str = "yes") -> Reply:
    return Reply(ids=ids, words=tuple(range(len(ids))), text=text if ids else "", finished=finished)


def exchange(name: str, on: Reply, off: Reply) -> Exchange:
    return Exchange(name=name, task="pope", question="is there a dog ?", on=on, off=off)


SAME = exchange("pope/0", reply(4, 5), reply(4, 5))
OTHER_IDS = exchange("pope/1", reply(4, 5), reply(4, 6))  # of the same text
CUT_OFF = exchange("pope/2", reply(4, finished=False), reply(4))
SILENT = exchange("pope/3", reply(), reply())


def test_token_ids_count_and_not_the_text(tmp_path: Path) -> None:
    found = equality([SAME, OTHER_IDS, CUT_OFF, SILENT])
    assert (found["questions"], found["identical"], found["tokens"], found["silent"]) == (4, False, 5, 1)
    assert [each["name"] for each in found["differences"]] == ["pope/1", "pope/2"]
    assert found["differences"][0]["on"] == {"text": "yes", "ids": [4, 5], "finished": True}
    write_answers(tmp_path / "a.jsonl", [SAME, OTHER_IDS])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["same"] for line in lines] == [True, False]


def test_nothing_asked_is_nothing_shown() -> None:
    assert equality([SAME, SILENT])["identical"]
    assert not equality([])["identical"]
