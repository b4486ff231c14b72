"""The Segment Anything Model, built from segment_anything's own modules at the official sizes or at a tiny one.

Letters: B images, e side of the embedding grid (image_size / patch_size), Ce channels of embeddings and prompts.
SAM sees the image in the top left corner of a square (zeros below and to the right): "SAM's frame".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from manifests.errors import ModelError
from stages.extract.images import Box, pad_bottom_right

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TINY_FOLDER = Path(__file__).parent / "tiny" / "sam"

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
# File name and sha256. The six digits inside the names are the beginning of the files' MD5, not of their SHA-256.
OFFICIAL_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class SamConfig:
    """All sizes of one SAM. The defaults of the lower half are those that the official models share."""

    width: int
    """Channels of the image encoder."""
    depth: int
    """Blocks of the image encoder."""
    heads: int
    """Attention heads of the image encoder."""
    global_attention: tuple[int, ...]
    """Blocks of the image encoder that attend to the whole image; the others attend inside a window."""
    image_size: int = 1024
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of one patch, pixels."""
    window: int = 14
    """Side of an attention window, patches; 0: every block attends to the whole image."""
    channels: int = 256
    """Ce, channels of the image embedding and of the prompts."""
    decoder_heads: int = 8
    """Attention heads of the mask decoder's transformer."""
    decoder_mlp: int = 2048
    """Hidden width of that transformer's MLP."""
    mask_channels: int = 16
    """Hidden channels that embed a mask prompt."""

    def __post_init__(self) -> None:
        for multiple, factor in (("image_size", "patch_size"), ("width", "heads")):
            _check_divides(self, multiple, factor, getattr(self, factor))
        _check_divides(self, "channels", "8", 8)  # the upscaled embedding has an eighth of the channels
        _check_divides(self, "channels", "2 · decoder_heads", 2 * self.decoder_heads)
        _check_divides(self, "mask_channels", "4", 4)

    @property
    def grid(self) -> int:
        """e, the side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of mask prompts and of predicted masks, 4e (a quarter of the input where a patch has 16 pixels)."""
        return 4 * self.grid

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamConfig:
        """The inverse of `dataclasses.asdict` after a trip through JSON."""
        return cls(**{**values, "global_attention": tuple(values["global_attention"])})


def _check_divides(config: SamConfig, field: str, name: str, divisor: int) -> None:
    value = getattr(config, field)
    if divisor <= 0 or value <= 0 or value % divisor:
        raise ValueError(f"SamConfig.{field} must be a positive multiple of {name}: got {value} and {divisor}")


SAM_PRESETS = {
    "tiny": SamConfig(
        width=96, depth=4, heads=3, global_attention=(0, 1, 2, 3), image_size=128, patch_size=8, window=0,
        channels=64, decoder_heads=4, decoder_mlp=256,
    ),
    "vit_b": SamConfig(width=768, depth=12, heads=12, global_attention=(2, 5, 8, 11)),
    "vit_l": SamConfig(width=1024, depth=24, heads=16, global_attention=(5, 11, 17, 23)),
    "vit_h": SamConfig(width=1280, depth=32, heads=16, global_attention=(7, 15, 23, 31)),
}  # fmt: skip


def build_sam(config: SamConfig) -> Sam:
    """An untrained SAM of these sizes, in eval mode (weights from torch's global random generator)."""
    sam = Sam(
        image_encoder=build_image_encoder(config),
        prompt_encoder=build_prompt_encoder(config),
        mask_decoder=build_mask_decoder(config),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


def build_image_encoder(config: SamConfig) -> ImageEncoderViT:
    """The ViT: normalised float32 [B, 3, image_size, image_size] -> [B, Ce, e, e]."""
    return ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=4,
        out_chans=config.channels,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_attention,
    )


def build_prompt_encoder(config: SamConfig) -> PromptEncoder:
    """Boxes (pixels of SAM's frame) and mask logits at [4e, 4e] -> sparse and dense prompts of Ce channels."""
    return PromptEncoder(
        embed_dim=config.channels,
        image_embedding_size=(config.grid, config.grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )


def build_mask_decoder(config: SamConfig) -> MaskDecoder:
    """Embedding and prompts -> mask logits at [4e, 4e]."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(
            depth=2, embedding_dim=config.channels, num_heads=config.decoder_heads, mlp_dim=config.decoder_mlp
        ),
        transformer_dim=config.channels,
        iou_head_depth=3,
        iou_head_hidden_dim=config.channels,  # 256 in the official models, as their channels
    )


def sam_config(source: str) -> SamConfig:
    """The sizes behind `source`: a preset's name, or a folder that `save_sam` wrote."""
    if source in SAM_PRESETS:
        return SAM_PRESETS[source]
    file = Path(source) / CONFIG_FILE
    if not file.is_file():
        known = ", ".join(SAM_PRESETS)
        raise ModelError(f"no SAM called {source!r}: give one of {known}, or a folder with {CONFIG_FILE}")
    try:
        return SamConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file} does not describe a SAM: {error}") from error


def load_sam(source: str = "tiny", checkpoint: Path | None = None) -> Sam:
    """A trained SAM, in eval mode, on the CPU, float32.

    `source`: a preset's name, or a folder that `save_sam` wrote. `checkpoint`: its weights, `.safetensors` or the
    official `.pth`; by default what belongs to the source (official files: torch's hub folder, never downloaded here).
    Raises ModelError where a file is missing, is not the official one that its name says, or does not fit.
    """
    config = sam_config(source)
    path = checkpoint_of(source, checkpoint)
    _check_digest(path)
    sam = build_sam(config)
    load_weights(sam, read_weights(path), str(path))
    return sam


def checkpoint_of(source: str, checkpoint: Path | None = None) -> Path:
    """The file of the weights, see `load_sam`. ModelError where it is missing: what to download and where to put it."""
    path = checkpoint or _default_checkpoint(source)
    if not path.is_file():
        raise ModelError(_how_to_get(source, path))
    return path


def save_sam(sam: Sam, config: SamConfig, folder: Path) -> None:
    """Writes `model.safetensors` and `config.json`, which `load_sam(folder)` and `sam_config(folder)` read."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sam.state_dict().items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `torch.save`d state dict (read without running its pickle)."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes pickle, zip and safetensors raise: it has no common base
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ModelError(f"{path} can not be read as weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (a dictionary of tensors)")
    return state


def load_weights(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """`module.load_state_dict(state)`, with every misfit named in one ModelError."""
    own = module.state_dict()
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} {state[name].dtype} instead of {tensor.dtype}"
        for name, tensor in own.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    misfits = {"missing": sorted(own.keys() - state.keys()), "unknown": sorted(state.keys() - own.keys())}
    misfits |= {"of another shape": shapes, "of another type": kinds}
    found = [f"{kind}: {', '.join(names)}" for kind, names in misfits.items() if names]
    if found:
        raise ModelError(f"the weights in {where} do not fit {type(module).__name__}; {'; '.join(found)}")
    module.load_state_dict(state)


def preprocess_sam(image: Image.Image, size: int) -> tuple[Tensor, Box]:
    """float32 [3, size, size]: normalised, then zero-padded below and to the right; and the image's box in it."""
    pixels, box = pad_bottom_right(image.convert("RGB"), size)
    return normalise_sam([torch.from_numpy(pixels)], size)[0], box


def normalise_sam(pixels: Sequence[Tensor], size: int, device: str | torch.device = "cpu") -> Tensor:
    """Images uint8 [height, width, 3] of `pad_bottom_right` -> float32 [B, 3, size, size] on `device`, see above."""
    mean, std = (torch.tensor(x, dtype=torch.float32, device=device) for x in (PIXEL_MEAN, PIXEL_STD))
    batch = torch.zeros(len(pixels), 3, size, size, dtype=torch.float32, device=device)
    for square, image in zip(batch, pixels, strict=True):
        normalised = (image.to(device, non_blocking=True).float() - mean) / std
        square[:, : image.shape[0], : image.shape[1]] = normalised.permute(2, 0, 1)
    return batch


@torch.no_grad()
def encode_images(sam: Sam, batch: Tensor) -> Tensor:
    """float32 [B, 3, size, size] of `normalise_sam` -> embeddings [B, Ce, e, e], in the encoder's dtype and place."""
    weight = sam.image_encoder.patch_embed.proj.weight
    return sam.image_encoder(batch.to(weight.device, weight.dtype))


def _default_checkpoint(source: str) -> Path:
    if source in OFFICIAL_FILES:
        return Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL_FILES[source][0]
    return (TINY_FOLDER if source == "tiny" else Path(source)) / WEIGHTS_FILE


def _how_to_get(source: str, path: Path) -> str:
    if source not in OFFICIAL_FILES:
        return f"SAM {source}: no weights at {path}"
    name = OFFICIAL_FILES[source][0]
    return f"SAM {source}: no weights at {path}; download {OFFICIAL_URL}{name} and put it there, or give its path"


def _check_digest(path: Path) -> None:
    """A file under an official name must be that file: a torn download would otherwise load in part or not at all."""
    expected = dict(OFFICIAL_FILES.values()).get(path.name)
    if expected is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelError(f"{path} is damaged or another file: sha256 {actual}, expected {expected}; download it again")
