"""The LMMs that `--lmm NAME` knows: where their weights are, how they are prompted, and the shapes for planning."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from manifests.errors import ModelError

TINY: Final = Path(__file__).parent / "tiny"
LLAVA_TEMPLATE: Final = "USER: <image>\n{prompt} ASSISTANT:"


@dataclass(frozen=True, kw_only=True, slots=True)
class LMMPreset:
    """One frozen LMM. The shapes are checked against the loaded model; planning uses them before any weights exist."""

    name: str
    source: str
    """Hugging Face id, or a folder that `from_pretrained` loads."""
    template: str
    """The conversation up to the answer; `{prompt}` and one `<image>`."""
    layers: int
    """M, layers of the text decoder."""
    heads: int
    """N, attention heads per layer."""
    width: int
    """d, width of the hidden states."""
    image_size: int
    """Side of the vision tower's square input, pixels."""
    patch: int
    """Side of one of its patches, pixels."""
    mean: tuple[float, float, float]
    """Mean colour (RGB, 0 to 1): normalisation, and the colour of the padding."""
    std: tuple[float, float, float]
    dtype: str
    """float32, bfloat16 or float16: what the weights are loaded as."""
    sam: str
    """The SAM preset whose embeddings go with it."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the image's tokens."""
        side = self.image_size // self.patch
        return side, side

    @property
    def channels(self) -> int:
        """C = M * N attention maps per object."""
        return self.layers * self.heads


CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
PRESETS: Final = {
    "llava": LMMPreset(
        name="llava",
        source="llava-hf/llava-1.5-7b-hf",
        template=LLAVA_TEMPLATE,
        layers=32,
        heads=32,
        width=4096,
        image_size=336,
        patch=14,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        dtype="bfloat16",
        sam="vit_l",
    ),
}


def resolve_lmm(name: str) -> LMMPreset:
    """A preset's name, `tiny` (the embedded default), or a folder holding a LLaVA checkpoint."""
    if name == "tiny":
        if not (TINY / "lmm" / "model.safetensors").is_file():
            raise ModelError(
                f"the embedded LMM's weights are not in {TINY / 'lmm'}: make them with "
                "`python -m stages.extract.tiny.train_lmm --out stages/extract/tiny/lmm` (over an hour on a CPU), "
                "or give --lmm another preset or folder"
            )
        return replace(_from_folder(TINY / "lmm"), name="tiny", sam="tiny")
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).is_dir():
        return _from_folder(Path(name))
    raise ModelError(f"--lmm {name}: known are tiny, {', '.join(PRESETS)}, or a folder with a LLaVA checkpoint")


def _from_folder(folder: Path) -> LMMPreset:
    """Read the shapes of a local LLaVA checkpoint from its config files; the rest is a preset's of the same shapes."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no checkpoint: config.json is missing; give a folder that from_pretrained loads")
    from transformers import AutoConfig  # slow to import, needed for folders only

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        images = _image_settings(folder)
    except Exception as error:  # beside OSError and ValueError, validators of transformers raise their own
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{folder} is no checkpoint: a config file can not be read ({reason}); copy it again"
        ) from None
    if config.model_type != "llava":
        raise ModelError(f"{folder} holds a {config.model_type} model; only LLaVA checkpoints are supported so far")
    if images is None:
        raise ModelError(
            f"{folder} is no checkpoint: neither processor_config.json nor preprocessor_config.json has image_mean and "
            "image_std; copy the file that has them"
        )
    text, vision = config.text_config, config.vision_config
    shapes = {
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "width": text.hidden_size,
        "image_size": vision.image_size,
        "patch": vision.patch_size,
    }
    known = next((p for p in PRESETS.values() if all(getattr(p, k) == size for k, size in shapes.items())), None)
    return LMMPreset(
        name=str(folder),
        source=str(folder),
        template=known.template if known else LLAVA_TEMPLATE,
        mean=tuple(images["image_mean"]),
        std=tuple(images["image_std"]),
        dtype=known.dtype if known else str(config.dtype or "float32").removeprefix("torch."),
        sam=known.sam if known else "vit_l",
        **shapes,
    )


def _image_settings(folder: Path) -> dict[str, Any] | None:
    """How images are normalised. The hub's LLaVA has both files, and only the second one says it."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            values = values.get("image_processor", values)
            if {"image_mean", "image_std"} <= values.keys():
                return values
    return None
