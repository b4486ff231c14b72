"""The frozen LMM as extraction uses it: tokenise without weights, prepare images, run a batch, identify the weights."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from manifests.errors import ModelError
from manifests.schema import Sample
from stages.extract.attention import AttentionCapture, Captured, Merge, WordRows
from stages.extract.images import pad_to_square
from stages.extract.presets import LMMPreset


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A sample's teacher-forced answer in tokens. All lists have one entry per token.

    ids: token ids.  objects: which object of the sample the token belongs to, -1 for none.  words: running number of
    the whitespace-separated word that the token is part of.
    """

    ids: list[int]
    objects: list[int]
    words: list[int]

    def tokens_of(self, count: int) -> list[list[int]]:
        """For each of the sample's `count` objects the positions of its tokens in the answer."""
        found: list[list[int]] = [[] for _ in range(count)]
        for position, owner in enumerate(self.objects):
            if owner >= 0:
                found[owner].append(position)
        return found


class Tokeniser:
    """The LMM's own tokenizer, and the prompt with its image token repeated once per image column."""

    def __init__(self, preset: LMMPreset, *, download: bool = True):
        """Raises ModelError where the tokenizer is not on this machine (or broken) and can not be downloaded."""
        from transformers import AutoTokenizer

        self.preset = preset
        folder = local_folder(preset, download=download)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # a missing or damaged file raises ValueError, KeyError, OSError, bare Exception, …
            raise _unloadable(folder, "tokenizer", error) from error
        self.image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        if self.image_id is None or self.image_id == self.tokenizer.unk_token_id:
            raise ModelError(f"the tokenizer of {preset.source} has no <image> token")

    def prompt(self, prompt: str) -> list[int]:
        """Ids of the conversation up to the answer, the image token expanded to h * w copies."""
        ids = self.tokenizer.encode(self.preset.template.format(prompt=prompt))
        at = ids.index(self.image_id)
        height, width = self.preset.grid
        return [*ids[:at], *[self.image_id] * (height * width), *ids[at + 1 :]]

    def answer(self, sample: Sample) -> Answer:
        """Each piece is tokenised alone, without special tokens, and the ids are concatenated (F-LMM).

        So which tokens belong to which object is exact by construction.
        """
        ids: list[int] = []
        objects: list[int] = []
        words: list[int] = []
        spoken = 0
        for piece in sample.pieces:
            if not piece.text.strip():
                continue  # no word, no token
            encoded = self.tokenizer(piece.text, add_special_tokens=False, return_offsets_mapping=True)
            starts = [m.start() for m in re.finditer(r"\S+", piece.text)]
            for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                # the token's last character decides; a space belongs to the word that follows it
                last = end if piece.text[max(end - 1, 0)].isspace() else end - 1
                ids.append(token)
                objects.append(-1 if piece.object is None else piece.object)
                words.append(spoken + max(0, bisect_right(starts, last) - 1))
            spoken += len(starts)
        return Answer(ids=ids, objects=objects, words=words)


@dataclass(frozen=True, kw_only=True, slots=True)
class LMMInput:
    """One sample ready for the LMM. pixels: uint8 [S, S, 3]; prompt_ids hold the expanded image tokens."""

    pixels: np.ndarray
    prompt_ids: list[int]
    answer_ids: list[int]
    object_tokens: list[list[int]]
    """For each object the positions of its tokens in the answer."""


class FrozenLMM:
    """A frozen Hugging Face LLaVA and its attention capture."""

    def __init__(self, preset: LMMPreset, device: str = "cpu", dtype: str | None = None, merge: Merge = "mean"):
        from transformers import LlavaForConditionalGeneration

        self.preset, self.device = preset, torch.device(device)
        folder = local_folder(preset, weights=True)
        model: Any = LlavaForConditionalGeneration
        weights = getattr(torch, dtype or preset.dtype)
        try:
            self.model = model.from_pretrained(folder, dtype=weights, attn_implementation="sdpa").to(self.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(
                f"{folder} does not fit into the memory of {device} ({first_line(error)}): "
                "give --dtype bfloat16, or a --device with more"
            ) from error
        except Exception as error:  # what damaged files make safetensors and transformers raise has no common base
            raise _unloadable(folder, "weights", error) from error
        config = self.model.config
        loaded = (
            config.text_config.num_hidden_layers,
            config.text_config.num_attention_heads,
            config.text_config.hidden_size,
            config.vision_config.image_size // config.vision_config.patch_size,
        )
        if loaded != (preset.layers, preset.heads, preset.width, preset.grid[0]):
            raise ModelError(f"{preset.source} has (layers, heads, width, grid) {loaded}, not those of the preset")
        self.capture = AttentionCapture(self.model, merge)
        self.image_id = config.image_token_id
        self.mean = torch.tensor(preset.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(preset.std, device=self.device).view(1, 3, 1, 1)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """uint8 [S, S, 3]: the LMM's square input."""
        return pad_to_square(image, self.preset.image_size, self.preset.mean)[0]

    def collate(self, batch: Sequence[LMMInput], length: int) -> tuple[dict[str, Tensor], list[WordRows]]:
        """Model inputs right-padded to `length` tokens, and where each sample's words and image are in them."""
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        mask = torch.zeros(len(batch), length, dtype=torch.long)
        rows = []
        for b, sample in enumerate(batch):
            tokens = sample.prompt_ids + sample.answer_ids
            ids[b, : len(tokens)] = torch.tensor(tokens)
            mask[b, : len(tokens)] = 1
            start = len(sample.prompt_ids)
            rows.append(
                WordRows(
                    objects=[[start + p for p in positions] for positions in sample.object_tokens],
                    columns=[p for p, token in enumerate(sample.prompt_ids) if token == self.image_id],
                    answer=range(start, len(tokens)),
                )
            )
        pixels = torch.from_numpy(np.stack([s.pixels for s in batch])).to(self.device).permute(0, 3, 1, 2)
        pixels = ((pixels.float() / 255 - self.mean) / self.std).to(self.model.dtype)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device), "pixel_values": pixels}
        return inputs, rows

    def run(self, batch: Sequence[LMMInput], length: int | None = None) -> Captured:
        """One forward pass over a batch; see `Captured` for shapes. `length`: the plan's padded length."""
        longest = max(len(s.prompt_ids) + len(s.answer_ids) for s in batch)
        inputs, rows = self.collate(batch, length or longest)
        return self.capture.run(inputs, rows)


def _unloadable(folder: str, part: str, error: Exception) -> ModelError:
    return ModelError(
        f"the {part} in {folder} can not be loaded ({first_line(error)}): a file is missing or damaged, copy or "
        "download the folder again"
    )


def first_line(error: BaseException) -> str:
    """The type and the first line of a foreign error, for a message of one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].strip()


def local_folder(preset: LMMPreset, *, weights: bool = False, download: bool = True) -> str:
    """The folder that holds the LMM's files, downloaded to the Hugging Face cache where it is not there yet.

    Raises ModelError in one line where neither the files nor the network are there.
    """
    if Path(preset.source).is_dir():
        if weights and not list(Path(preset.source).glob("*.safetensors")):
            raise ModelError(f"{preset.source} holds no *.safetensors weights")
        return preset.source
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt"] + (["*.safetensors"] if weights else [])
    try:
        return snapshot_download(preset.source, allow_patterns=patterns, local_files_only=not download)
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSErrors for "not there"
        raise ModelError(
            f"{preset.source} is neither in the Hugging Face cache nor reachable ({type(error).__name__}): "
            f"on a machine with network run `hf download {preset.source} --local-dir DIR`, copy DIR here and pass "
            "--lmm DIR"
        ) from None


def weights_identity(folder: str) -> dict[str, str]:
    """sha256 of every weight and tokenizer file of a checkpoint folder: what "the same LMM" means.

    Files of the Hugging Face cache are links to blobs that are named by their sha256, which saves reading them.
    """
    identity = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".safetensors", ".json", ".model") or path.name == "training.json":
            continue
        blob = path.resolve().name
        identity[path.name] = blob if re.fullmatch("[0-9a-f]{64}", blob) else file_sha256(path)
    return identity


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
