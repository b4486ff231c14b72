"""Text similarity: word F1 by hand, and a tiny random BERT against its states averaged one phrase at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from manifests.errors import ModelError
from stages.evaluate.similarity import Encoder, TokenF1, open_similarity
from stages.extract.checkpoint import file_sha256

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEG]", "[SEP]", "[MASK]", "a", "the", "red", "blue", "ring", "star", "sky"]
PHRASES = ["the red ring", "a blue star", "sky", "", "the red ring", "the the the the the the the the the the sky"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights that reads eight tokens at most."""
    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    folder.mkdir()
    (folder / "words.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast({word: k for k, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("the red ring", "red ring", 1),
        ("Red ring,", "a red RING.", 1),
        ("red ring", "blue ring", 0.5),
        ("ring", "two red rings", 0),
        ("ring ring", "ring", 2 / 3),
        ("", "ring", 0),
        ("the", "the", 0),
    ],
)
def test_token_f1(one: str, other: str, expected: float) -> None:
    assert TokenF1()([one, "x"], [other]).tolist() == [[pytest.approx(expected)], [0]]
    assert TokenF1()([other], [one])[0, 0] == pytest.approx(expected)


def test_states_averaged_over_the_tokens_of_each_phrase_alone(bert: Path) -> None:
    encoder = Encoder(str(bert))
    model = BertModel.from_pretrained(bert, attn_implementation="eager").eval()
    tokenizer = BertTokenizerFast.from_pretrained(bert)
    vectors = []
    for phrase in PHRASES:
        given = tokenizer(phrase, return_tensors="pt", max_length=8, truncation=True)
        with torch.no_grad():
            vectors.append(model(**given).last_hidden_state[0].mean(0).double().numpy())
    expected = [[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in vectors[:3]] for a in vectors]
    for _ in range(2):  # the second time from memory
        np.testing.assert_allclose(encoder(PHRASES, PHRASES[:3]), expected, atol=1e-5)
    assert encoder([], PHRASES).shape == (0, 6) and encoder(PHRASES, []).shape == (6, 0)
    assert encoder(PHRASES, PHRASES)[0, 4] == pytest.approx(1)


def test_identity_names_the_weights_and_the_vocabulary(bert: Path) -> None:
    found = Encoder(str(bert)).identity
    assert found["name"] == "tiny-bert" and found["revision"] is None
    assert found["files"]["model.safetensors"] == file_sha256(bert / "model.safetensors")
    assert {"config.json", "words.txt"} <= found["files"].keys()
    assert TokenF1().identity == {"name": "token_f1"}


def test_a_snapshot_of_the_hub_has_its_revision(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--some--bert"
    snapshot = repository / "snapshots" / ("0" * 39 + "1")
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(bert)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = Encoder("some/bert")
    assert (encoder.name, encoder.identity["revision"]) == ("some/bert", snapshot.name)


def test_memory_is_bounded(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.evaluate.similarity._KEPT", 4)
    encoder = Encoder(str(bert))
    for phrase in PHRASES:
        encoder([phrase], ["sky"])
        assert len(encoder._vectors) <= 4


def test_what_can_not_be_loaded_is_said_in_one_line(bert: Path, tmp_path: Path) -> None:
    assert isinstance(open_similarity("token_f1"), TokenF1)
    with pytest.raises(
        ModelError, match=r"encoder: no/such is neither .*--local-dir no/such`; run this beside a copy of it$"
    ) as error:
        open_similarity("no/such")
    assert "\n" not in str(error.value)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in bert.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=r"can not be loaded") as error:
        open_similarity(str(broken))
    assert "\n" not in str(error.value)
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")  # a pickle is never opened
    with pytest.raises(ModelError, match=r"holds no \*.safetensors weights: give --similarity a folder"):
        open_similarity(str(broken))
