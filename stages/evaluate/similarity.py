"""How alike two phrases are, in [-1, 1]: the text side of GCG's recall.

The public GCG script (https://github.com/mbzuai-oryx/groundingLMM/blob/main/eval/gcg/evaluate.py) takes the cosine of
`bert-base-uncased`'s last hidden states, averaged over all tokens of a phrase, [CLS] and [SEP] among them, at most 512:
`Encoder("google-bert/bert-base-uncased")` here. `TokenF1` needs no model and is a stand-in: it is another measure, and
every metric made with it carries its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from manifests.errors import ModelError
from stages.evaluate.baselines import normal
from stages.extract.checkpoint import file_sha256, first_line, local_folder, weights_identity

TOKEN_F1: Final = "token_f1"
MAX_TOKENS: Final = 512
ARTICLES: Final = ("a", "an", "the")
BATCH: Final = 64
_KEPT: Final = 50_000  # vectors held at most: 150 MB at 768 numbers


class Similarity(Protocol):
    """`name` goes into the metric's name, `identity` into metrics.json."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def __call__(self, phrases: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """float64 [phrases, others]"""
        ...


def open_similarity(source: str, *, device: str = "cpu") -> Similarity:
    """source: "token_f1", or a text encoder's Hugging Face id or folder. Raises ModelError where there is none."""
    return TokenF1() if source == TOKEN_F1 else Encoder(source, device=device)


class TokenF1:
    """F1 of the two phrases' words as multisets, as SQuAD compares answers: lower case, no articles, no punctuation."""

    name = TOKEN_F1

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": TOKEN_F1}

    def __call__(self, phrases: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """float64 [phrases, others] in [0, 1]; 0 where either has no word."""
        bags, other_bags = [_bag(text) for text in phrases], [_bag(text) for text in others]
        values = [[_f1(one, other) for other in other_bags] for one in bags]
        return np.array(values, np.float64).reshape(len(phrases), len(others))


def _bag(text: str) -> Counter[str]:
    return Counter(word for word in map(normal, text.split()) if word and word not in ARTICLES)


def _f1(one: Counter[str], other: Counter[str]) -> float:
    return 2 * (one & other).total() / max(1, one.total() + other.total())


class Encoder:
    """Cosine of mean-pooled last hidden states of a Hugging Face text encoder (safetensors only, none of its code)."""

    def __init__(self, source: str, *, device: str = "cpu"):
        """Loads float32 weights; ModelError in one line where they are neither here nor reachable, or do not load."""
        from transformers import AutoModel, AutoTokenizer

        folder = _folder(source)
        given: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **given)
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype="float32", **given)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors' own, …
            raise ModelError(
                f"the text encoder in {folder} can not be loaded ({first_line(error)}): give --similarity another one"
            ) from None
        self._model = model.to(device).eval()
        limit = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        self._max_tokens = min(MAX_TOKENS, limit, self._tokenizer.model_max_length)
        self._vectors: dict[str, np.ndarray] = {}
        # a folder as the message above makes it has the encoder's name
        self.name = source if not Path(source).is_absolute() and source.count("/") == 1 else Path(source).resolve().name
        self.identity: dict[str, Any] = {
            "name": self.name,
            "revision": Path(folder).name if Path(folder).parent.name == "snapshots" else None,
            "pooling": "mean of all tokens, last layer",
            "files": weights_identity(folder) | {p.name: file_sha256(p) for p in sorted(Path(folder).glob("*.txt"))},
        }

    def __call__(self, phrases: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """float64 [phrases, others], cosines."""
        wanted = dict.fromkeys([*phrases, *others])
        if len(self._vectors) + len(wanted) > _KEPT:
            self._vectors.clear()
        new = [text for text in wanted if text not in self._vectors]
        for first in range(0, len(new), BATCH):
            batch = new[first : first + BATCH]
            self._vectors.update(zip(batch, self._embed(batch), strict=True))
        if not phrases or not others:
            return np.zeros((len(phrases), len(others)))
        return np.stack([self._vectors[t] for t in phrases]) @ np.stack([self._vectors[t] for t in others]).T

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts, d] of length 1."""
        import torch

        given = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._max_tokens
        ).to(self._model.device)
        with torch.no_grad():
            hidden = self._model(**given).last_hidden_state.double()
        mask = given["attention_mask"][..., None].double()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=1).cpu().numpy()


def _folder(source: str) -> str:
    try:
        return local_folder(source, weights=True)
    except ModelError as error:
        cure = f"on a machine with network `hf download {source} --local-dir {source}`; run this beside a copy of it"
        if Path(source).is_dir():
            cure = "give --similarity a folder that has them"
        raise ModelError(f"no text encoder: {str(error).partition(':')[0]}: {cure}") from None
