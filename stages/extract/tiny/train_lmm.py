"""Train the embedded tiny LMM from scratch: a real LlavaForConditionalGeneration, next-token loss on text alone.

    python -m stages.extract.tiny.train_lmm --out stages/extract/tiny/lmm

It sees scenes of the seed range `pretrain` and what can be said of them; it never sees a mask, a box or a coordinate.
The result loads with plain `from_pretrained`; `training.json` beside the weights is the record of the run.
"""

from __future__ import annotations

import json
import math
import platform
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from manifests.scenes.language import narrative
from manifests.scenes.lessons import listing, question, shelf_listing, statements
from manifests.scenes.world import make_scene
from manifests.scenes.write import GENERATOR_VERSION
from stages.extract.checkpoint import file_sha256
from stages.extract.images import pad_to_square

IMAGE, PATCH = 96, 8
TEMPLATE = "USER: <image>\n{prompt} ASSISTANT:"
DESCRIBE = "Please give me a description of the image."
PROMPTS = (DESCRIBE, DESCRIBE, DESCRIBE, "What is in the picture?", "Describe the image.")
MEAN = STD = (0.5, 0.5, 0.5)
LISTINGS_ONLY = 0.15  # share of the curriculum that teaches words
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")


@dataclass(kw_only=True, slots=True)
class Config:
    """How the tiny LMM is trained."""

    out: Path
    """Folder for weights, tokenizer, processor and record."""
    start: Path | None = None
    """Folder of an earlier run to go on from, past the listings that teach words; its record is kept in the new one."""
    steps: int = 6000
    """Optimiser steps."""
    stop: int | None = None
    """End after so many of them: an earlier checkpoint of the same training."""
    batch: int = 16
    """Scenes a step."""
    text_tokens: int = 100
    """Tokens after the image, prompt and answer: padded or cut to this number, so that compiled code is reused."""
    lr: float = 2e-3
    """Peak learning rate: warm-up over 50 steps, constant, linear to zero over the last 40 %."""
    optimizer: str = "muon"
    """muon (matrices; the rest AdamW) or adamw."""
    layers: int = 5
    """Decoder layers of the language model."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 2
    """CPU threads of the optimiser process."""
    workers: int = 1
    """Processes that render scenes; the scenes and their order are the same for any number."""
    compile: bool = True
    """torch.compile the two transformers (needs a C compiler)."""
    save_every: int = 500
    """Steps between saves of the weights."""


def conversation(
    index: int, split: str = "pretrain", shelves: float = 0.0, listed: float = 1.0
) -> tuple[Image.Image, str, str]:
    """Scene `index` with one prompt and one answer, a pure function of its arguments: (image, prompt, answer).

    shelves: share of scenes in which things stand in rows and columns; listed: share of these that are listed in
    that order, the others are told about like any scene.
    """
    rng = random.Random(index + 7)
    shelf = rng.random() < shelves
    scene = make_scene(split, index, shelf=shelf)
    image = Image.fromarray(scene.image)
    if shelf and rng.random() < listed:
        return image, *shelf_listing(scene, scene.columns, rng)
    if shelf:
        return image, rng.choice(PROMPTS), statements(scene, rng)
    kind = rng.random()
    if kind < 0.06:
        asked = question(scene, rng)
        return image, asked.text, asked.answer
    if kind < 0.3:
        return image, *listing(scene, rng)
    if kind < 0.75:
        return image, rng.choice(PROMPTS), statements(scene, rng)
    return image, rng.choice(PROMPTS), " ".join(segment.text for segment in narrative(scene, rng))


def train_tokenizer(samples: int = 2000, vocabulary: int = 480) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be encoded; frequent words are one token, rare ones several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (
        TEMPLATE.replace("<image>", "").format(prompt=q) + " " + a for _, q, a in map(conversation, range(samples))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlavaForConditionalGeneration:
    """A LLaVA of about 3 M parameters: CLIP tower 4 x 128 on a 12 x 12 grid, Llama `layers` x 192 with 6 heads."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        initializer_range=0.06,  # about 1 / sqrt(width); the default 0.02 is for widths of a thousand
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=int(tokenizer.convert_tokens_to_ids("<image>")),  # type: ignore[arg-type]
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=(IMAGE // PATCH) ** 2,
        )
    )
    with torch.no_grad():  # patches begin by knowing where they are, as in every ViT that is trained on little data
        positions = model.model.vision_tower.embeddings.position_embedding.weight
        positions[1:] = 0.4 * _sines(IMAGE // PATCH, positions.shape[1])
    return model


def _sines(side: int, width: int) -> torch.Tensor:
    """float32 [side * side, width]: sine and cosine of x and of y, row-major, at width / 4 frequencies."""
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)


def mixture(done: float) -> tuple[float, float]:
    """After a share of the training: (share of shelves among the scenes, share of listings among the shelves).

    Words for looks and places are learned from listings of dense pictures, then finding a thing by its description
    among them, then the scenes as they are.
    """
    if done < LISTINGS_ONLY:
        return 1.0, 1.0
    return (0.85, 0.35) if done < 0.4 else (0.15, 0.3)


class Conversations(IterableDataset):
    """Endless stream of (pixels uint8 [S, S, 3], text ids after the image [T], labels [T])."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, text_tokens: int, split: str = "pretrain",
        samples: int = 0, first: int = 0, begin: float = 0.0, batch: int = 1,
    ):  # fmt: skip
        """samples: how many there will be, they follow `mixture` from its share `begin` on; 0: as at its end.

        first: index of the first scene.  batch: a DataLoader's, whose workers take turns at making one.
        """
        self.tokenizer, self.text_tokens, self.split = tokenizer, text_tokens, split
        self.samples, self.first, self.begin, self.batch = samples, first, begin, batch

    def __iter__(self):
        worker = get_worker_info()
        for index in count(self.first):
            if worker and (index - self.first) // self.batch % worker.num_workers != worker.id:
                continue
            done = self.begin + (1 - self.begin) * ((index - self.first) / self.samples if self.samples else 1.0)
            image, prompt, answer = conversation(index, self.split, *mixture(done))
            pixels, _ = pad_to_square(image, IMAGE, MEAN)
            after_image = TEMPLATE.split("<image>")[1].format(prompt=prompt)
            prompt_ids = self.tokenizer.encode(after_image, add_special_tokens=False)
            answer_ids = self.tokenizer.encode(answer, add_special_tokens=False) + [self.tokenizer.eos_token_id]
            ids = (prompt_ids + answer_ids)[: self.text_tokens]
            padding = self.text_tokens - len(ids)
            labels = ([-100] * len(prompt_ids) + answer_ids)[: self.text_tokens] + [-100] * padding
            padded = torch.tensor(ids + [self.tokenizer.pad_token_id] * padding)
            yield torch.from_numpy(pixels), padded, torch.tensor(labels)


class Loss:
    """Next-token loss of one batch; the logits are computed for the text after the image only."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast):
        self.model = model
        before = tokenizer.encode(TEMPLATE.split("<image>")[0])
        image = [model.config.image_token_index] * (IMAGE // PATCH) ** 2
        self.device = model.device
        self.prefix = torch.tensor(before + image, device=self.device)

    def __call__(self, batch: list[torch.Tensor]) -> torch.Tensor:
        pixels, ids, labels = (each.to(self.device) for each in batch)
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        inputs = torch.cat([self.prefix.expand(len(ids), -1), ids], 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            # right padding under a causal mask: no attention mask is needed
            states = self.model.model(input_ids=inputs, pixel_values=pixels, use_cache=False).last_hidden_state
            logits = self.model.lm_head(states[:, -ids.shape[1] - 1 : -1]).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def optimizers(model: torch.nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer layers, AdamW for the rest; or AdamW for everything."""
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), config.lr / 2, betas=(0.9, 0.98), weight_decay=0.01)]
    inner = [(p.ndim == 2 and ".layers." in n, p) for n, p in model.named_parameters()]
    matrices, rest = ([p for is_inner, p in inner if is_inner == wanted] for wanted in (True, False))
    return [
        torch.optim.Muon(matrices, config.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, config.lr / 2, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step."""
    return min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict) -> None:
    """Weights (float16, to be loaded as the config says, in float32), tokenizer, processor, the record of the run."""
    model.save_pretrained(out, state_dict={name: value.half() for name, value in model.state_dict().items()})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE}, crop_size=IMAGE, image_mean=list(MEAN), image_std=list(STD)
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(out)
    record["sha256"] = file_sha256(out / "model.safetensors")
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    earlier: dict[str, Any] = {}
    if config.start:
        earlier = json.loads((config.start / "training.json").read_text())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(config.start)
        model = LlavaForConditionalGeneration.from_pretrained(config.start, dtype=torch.float32).train()
    else:
        tokenizer = train_tokenizer()
        model = build_model(tokenizer, config.layers)
    model.to(config.device)  # type: ignore[arg-type]
    model.set_attn_implementation("eager")  # its backward is faster than the fused kernel's on CPUs
    loss_of = Loss(model, tokenizer)
    if config.compile:
        model.model.vision_tower.compile()
        model.model.language_model.compile()
    first, begin = earlier.get("scenes_seen", 0), LISTINGS_ONLY if config.start else 0.0
    order = {"samples": config.steps * config.batch, "first": first, "begin": begin, "batch": config.batch}
    stream = Conversations(tokenizer, config.text_tokens, **order)
    loader = iter(DataLoader(stream, config.batch, num_workers=config.workers))
    held_out = list(islice(DataLoader(Conversations(tokenizer, config.text_tokens, split="val"), config.batch), 3))
    groups = optimizers(model, config)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: rate(s, config.steps)) for o in groups]
    steps = config.steps if config.stop is None else min(config.stop, config.steps)
    on_cpu = f"{platform.machine()} CPU, {config.threads} thread(s)"
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "stages.extract.tiny.train_lmm", *sys.argv[1:]]),
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "generator_version": GENERATOR_VERSION,
        "parameters": sum(p.numel() for p in model.parameters()),
        "objective": "next-token cross entropy on the answer's tokens; no masks, boxes or coordinates",
        "scenes": f"split pretrain, indices {first} to {first + steps * config.batch - 1}",
        "hardware": f"{on_cpu if config.device == 'cpu' else torch.cuda.get_device_name()}, torch {torch.__version__}",
        "earlier": earlier,
        "losses": [],
    }
    start, running = time.time(), math.nan
    for step in range(steps):
        loss = loss_of(next(loader))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(groups, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step + 1 == steps:
            seconds = time.time() - start
            print(f"step {step:5d}  loss {running:.3f}  {seconds / (step + 1):.2f} s/step", flush=True)
        if (step + 1) % config.save_every == 0 or step + 1 == steps:
            with torch.no_grad():
                held = sum(loss_of(batch).item() for batch in held_out) / len(held_out)
            record["losses"].append({"step": step + 1, "train": round(running, 4), "held_out": round(held, 4)})
            record["scenes_seen"] = first + (step + 1) * config.batch
            record["minutes"] = round((time.time() - start) / 60, 1)
            print(f"step {step:5d}  held-out loss {held:.3f}", flush=True)
            save(model, tokenizer, config.out, record)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
