"""The LMMs that `--lmm NAME` knows, one TOML file each; any other checkpoint of a known family by folder or by id."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from manifests.errors import ModelError
from stages.extract.checkpoint import has_code, local_folder, unloadable
from stages.extract.grids import GRIDS, LLAVA, grid_of

TINY: Final = Path(__file__).parent.parent / "tiny"
LLAVA_TEMPLATE: Final = "USER: <image>\n{prompt} ASSISTANT:"
VIPLLAVA_TEMPLATE: Final = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions.###Human: <image>\n{prompt}###Assistant:"
)  # its model card's
FURTHER: Final = {
    LLAVA_TEMPLATE: "{eos}USER: {prompt} ASSISTANT:",  # transformers' documentation of Llava, "multiple turns"
    VIPLLAVA_TEMPLATE: "###Human: {prompt}###Assistant:",  # transformers' documentation of VipLlava, "multiple turns"
}
"""How a template goes on after an answer; with no entry a conversation has one question (PaliGemma's)."""
STORED: Final = (64, 64)  # (h, w) of stored maps where an LMM's grid follows the image


@dataclass(frozen=True, kw_only=True, slots=True)
class Square:
    """LLaVA's input as F-LMM prepares it: longest side to `image_size`, padded to a square with the mean colour."""

    image_size: int
    """Side of the square, pixels."""
    patch: int
    """Side of one of the vision tower's patches, pixels."""
    mean: tuple[float, float, float]
    """Mean colour (RGB, 0 to 1): normalisation, and the colour of the padding."""
    std: tuple[float, float, float]

    @property
    def cells(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


@dataclass(frozen=True, kw_only=True, slots=True)
class LMMPreset:
    """One frozen LMM. The shapes are checked against the loaded model; planning uses them before any weights exist."""

    name: str
    source: str
    """Hugging Face id, or a folder that `from_pretrained` loads."""
    family: str
    """transformers' model_type: which file of `stages/extract/grids` finds the image."""
    template: str
    """The conversation up to the answer, with `{prompt}` and `{image}`; empty: the processor's own chat template."""
    layers: int
    """M, layers of the text decoder."""
    attention_layers: int
    """Those with attention: all, but for hybrids."""
    heads: int
    """N, attention heads per layer."""
    width: int
    """d, width of the hidden states."""
    grid: tuple[int, int]
    """(h, w) of the stored maps: the image's tokens where their grid is always the same, else 64 x 64."""
    dtype: str
    """float32, bfloat16 or float16: what the weights are loaded as. The presets' bfloat16 is our choice, for speed and
    memory: several checkpoints publish float16."""
    sam: str
    """The SAM preset whose embeddings go with it."""
    square: Square | None = None
    """For LLaVA; other families use their own image processor."""
    views: int = 1
    """1: one view of the whole image.  2: a coarse and a fine one, all maps of the coarse one first."""
    attention: str = "auto"
    """The attention that the frozen model runs: auto (sdpa, or eager where sdpa can not run it), sdpa, eager, or a
    flash attention of transformers (flash_attention_2, …)."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a checkpoint. Never unless asked for."""

    @property
    def further(self) -> str | None:
        """The template after an answer, with `{prompt}` and `{eos}`; None: it has one question only."""
        return FURTHER.get(self.template.replace("{image}", "<image>"))

    @property
    def channels(self) -> int:
        """C, attention maps per object: views * attention layers * heads."""
        return self.views * self.attention_layers * self.heads

    @property
    def object_bytes(self) -> int:
        """Bytes of one object's stored attention."""
        return 2 * self.channels * self.grid[0] * self.grid[1]

    def with_views(self, views: int) -> LMMPreset:
        """The same LMM seen in one view or in two; the fine one follows the image, its maps are stored as 64 x 64.

        Raises ModelError for a family that has one view only.
        """
        if views == 1:
            return self
        if GRIDS[self.family].fine is None:
            raise ModelError(f"--views {views}: the family {self.family} shows an image in one view: give --views 1")
        return replace(self, views=views, grid=STORED)

    def identity(self) -> dict[str, Any]:
        """What of it makes priors what they are; the files' digests come beside it."""
        shapes = {name: getattr(self, name) for name in ("template", "layers", "heads", "width", "attention")}
        if self.square:
            return shapes | asdict(self.square)
        shapes |= {"family": self.family, "attention_layers": self.attention_layers, "grid": self.grid}
        return shapes | {"views": self.views}


def _read(path: Path) -> LMMPreset:
    values: dict[str, Any] = {"grid": STORED} | tomllib.loads(path.read_text())
    if square := values.pop("square", None):
        values["square"] = Square(**square | {name: tuple(square[name]) for name in ("mean", "std")})
    values["grid"] = tuple(values["grid"])
    return LMMPreset(name=path.stem, **{"attention_layers": values["layers"], "template": ""} | values)


PRESETS: Final = {path.stem: _read(path) for path in sorted(Path(__file__).parent.glob("*.toml"))}


def resolve_lmm(name: str, *, trust_remote_code: bool = False) -> LMMPreset:
    """A preset's name, `tiny` (the embedded default), a folder with a checkpoint, or a Hugging Face id (ORG/NAME)."""
    return replace(_resolve(name, trust_remote_code), trust_remote_code=trust_remote_code)


def _resolve(name: str, trust_remote_code: bool) -> LMMPreset:
    if name == "tiny":
        if not (TINY / "lmm" / "model.safetensors").is_file():
            raise ModelError(
                f"the embedded LMM's weights are not in {TINY / 'lmm'}: make them with "
                "`python -m stages.extract.tiny.train_lmm --out stages/extract/tiny/lmm` (over an hour on a CPU), "
                "or give --lmm another preset or folder"
            )
        return replace(_from_folder(TINY / "lmm"), name="tiny", source=str(TINY / "lmm"), sam="tiny")
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).is_dir():
        return replace(_from_folder(Path(name), trust_remote_code), name=name, source=name)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return replace(
            _from_folder(Path(local_folder(name, code=trust_remote_code)), trust_remote_code), name=name, source=name
        )
    raise ModelError(
        f"--lmm {name}: known are tiny, {', '.join(PRESETS)}, a folder with a checkpoint, or a Hugging Face id ORG/NAME"
    )


def _from_folder(folder: Path, trust_remote_code: bool = False) -> LMMPreset:
    """Read the shapes of a checkpoint from its config files; the rest is a preset's of the same family and shapes."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no checkpoint: config.json is missing; give a folder that from_pretrained loads")
    if trust_remote_code:
        has_code(str(folder))  # refuses code of other repositories
    from transformers import AutoConfig  # slow to import, needed for folders only

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        settings = _settings(folder)
    except Exception as error:  # beside OSError and ValueError, validators of transformers raise their own
        raise unloadable(str(folder), "configuration", error, trust_remote_code) from None
    grid, text = grid_of(config), config.get_text_config(decoder=True)
    square = _square(folder, config, settings) if grid is LLAVA else None
    shapes: dict[str, Any] = {
        "family": config.model_type,
        "layers": text.num_hidden_layers,
        "attention_layers": _attention_layers(text),
        "heads": text.num_attention_heads,
        "width": text.hidden_size,
        "grid": grid.cells(config) if grid.cells else STORED,
    }
    known = next((p for p in PRESETS.values() if all(getattr(p, k) == v for k, v in shapes.items())), None)
    template = VIPLLAVA_TEMPLATE if config.model_type == "vipllava" else LLAVA_TEMPLATE
    if not square:
        template = "" if settings["chat_template"] else template.replace("<image>", "{image}")
    return LMMPreset(
        name=str(folder),
        source=str(folder),
        template=known.template if known else template,
        dtype=known.dtype if known else str(config.dtype or "float32").removeprefix("torch."),
        sam=known.sam if known else "vit_l",
        square=square,
        **shapes,
    )


def _attention_layers(text: Any) -> int:
    """Layers with attention: those of a hybrid are named in its configuration."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return sum(kind in ("full_attention", "sliding_attention", "chunked_attention") for kind in kinds)


def _settings(folder: Path) -> dict[str, Any]:
    """How images are normalised, and whether there is a chat template. The hub's LLaVA has them in different files."""
    found: dict[str, Any] = {"chat_template": (folder / "chat_template.jinja").is_file()}
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            found["chat_template"] = found["chat_template"] or bool(values.get("chat_template"))
            values = values.get("image_processor", values)
            if {"image_mean", "image_std"} <= values.keys():
                found.setdefault("mean", tuple(values["image_mean"]))
                found.setdefault("std", tuple(values["image_std"]))
    return found


def _square(folder: Path, config: Any, settings: dict[str, Any]) -> Square:
    if "mean" not in settings:
        raise ModelError(
            f"{folder} is no checkpoint: neither processor_config.json nor preprocessor_config.json has image_mean and "
            "image_std; copy the file that has them"
        )
    vision = config.vision_config
    return Square(image_size=vision.image_size, patch=vision.patch_size, mean=settings["mean"], std=settings["std"])
