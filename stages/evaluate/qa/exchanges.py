"""Questions with both answers: are they the same, token by token, and which are not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.schema import Reply


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A question and the two answers to it: with capture on and off.

    name: unique, `task/number`.  task: whose question it is: a kind of the built-in set, or a task of lmms-eval.
    """

    name: str
    task: str
    question: str
    on: Reply
    off: Reply

    @property
    def same(self) -> bool:
        """The same token ids, and both ended or both cut off."""
        return self.on.ids == self.off.ids and self.on.finished == self.off.finished

    def record(self) -> dict[str, Any]:
        """As it is filed."""
        answers = {
            name: {"text": said.text, "ids": list(said.ids), "finished": said.finished}
            for name, said in (("on", self.on), ("off", self.off))
        }
        return {"name": self.name, "task": self.task, "question": self.question, **answers, "same": self.same}


def equality(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """What is claimed: how many were asked, whether all the answers are identical, and every one that is not.

    silent: answers without a word, which prove little.  tokens: of all the answers with capture off.
    """
    different = [exchange.record() for exchange in exchanges if not exchange.same]
    return {
        "questions": len(exchanges),
        "identical": bool(exchanges) and not different,
        "tokens": sum(len(exchange.off.ids) for exchange in exchanges),
        "silent": sum(not exchange.off.ids for exchange in exchanges),
        "differences": different,
    }


def write_answers(path: Path, exchanges: Iterable[Exchange]) -> None:
    """All of them, a JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(exchange.record(), ensure_ascii=False) + "\n" for exchange in exchanges)
