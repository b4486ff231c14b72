"""SAM against segment_anything's own builders and pre-processing; files that are missing, wrong or hostile."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from manifests.errors import ModelError
from stages.extract import sam as module
from stages.extract.sam import (
    OFFICIAL_FILES,
    SAM_PRESETS,
    SamConfig,
    build_sam,
    encode_images,
    load_sam,
    preprocess_sam,
    sam_config,
    save_sam,
)

SMALL = SamConfig(
    width=16, depth=2, heads=2, global_attention=(1,), image_size=32, patch_size=8, window=2, channels=16,
    decoder_heads=2, decoder_mlp=32, mask_channels=8,
)  # fmt: skip


def settings(sam: torch.nn.Module) -> dict[str, object]:
    """Everything numeric that a module was built with and that its parameters' shapes do not tell."""
    return {
        f"{name}.{key}": value
        for name, part in sam.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, int | float | bool | tuple) and key != "_is_full_backward_hook"
    }


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_sizes_equal_the_official_builders(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_sam(SAM_PRESETS[name]), sam_model_registry[name]()
    assert str(ours) == str(theirs)
    assert settings(ours) == settings(theirs)
    shapes = [{key: value.shape for key, value in sam.state_dict().items()} for sam in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_tiny_one_runs() -> None:
    config = SAM_PRESETS["tiny"]
    sam = build_sam(config)
    embeddings = encode_images(sam, torch.randn(2, 3, 128, 128))
    assert embeddings.shape == (2, config.channels, config.grid, config.grid)
    assert not embeddings.requires_grad
    assert (config.grid, config.mask_size) == (16, 64)


@pytest.mark.parametrize(("width", "height"), [(50, 31), (31, 50), (32, 32), (900, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocessing_equals_the_official_one(width: int, height: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    resized = ResizeLongestSide(32).apply_image(np.array(image.convert("RGB")))
    with torch.no_grad():
        expected = build_sam(SMALL).preprocess(torch.from_numpy(resized).permute(2, 0, 1))
    actual, box = preprocess_sam(image, 32)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert (box.top, box.left, box.height, box.width, box.size) == (0, 0, *resized.shape[:2], 32)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    sam = build_sam(SMALL)
    save_sam(sam, SMALL, tmp_path / "sam")
    torch.save(sam.state_dict(), tmp_path / "weights.pth")
    assert sam_config(str(tmp_path / "sam")) == SMALL
    image = torch.randn(1, 3, 32, 32)
    for loaded in (load_sam(str(tmp_path / "sam")), load_sam(str(tmp_path / "sam"), tmp_path / "weights.pth")):
        assert not loaded.training
        assert torch.equal(encode_images(loaded, image), encode_images(sam, image))


def test_a_missing_official_file_is_told_with_its_address_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError) as error:
        load_sam("vit_l")
    message = str(error.value)
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth" in message
    assert str(tmp_path / "checkpoints" / "sam_vit_l_0b3195.pth") in message
    assert "\n" not in message


def test_an_official_name_with_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / OFFICIAL_FILES["vit_b"][0]
    path.write_bytes(b"half a download")
    with pytest.raises(ModelError, match="download it again"):
        load_sam("vit_b", path)


def test_the_digest_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sam(build_sam(SMALL), SMALL, tmp_path)
    path = tmp_path / "sam_small_ba7816.pth"
    path.write_bytes(b"abc")
    sha256_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setitem(module.OFFICIAL_FILES, "small", (path.name, sha256_of_abc))
    with pytest.raises(ModelError, match="can not be read as weights"):  # beyond the digest
        load_sam(str(tmp_path), path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("touched"),))


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_sam(build_sam(SMALL), SMALL, tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    torch.save({"x": Hostile()}, tmp_path / "zipped.pth")
    for name in ("bad.pth", "zipped.pth"):
        with pytest.raises(ModelError, match="can not be read as weights"):
            load_sam(str(tmp_path), tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    save_sam(build_sam(SMALL), SMALL, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    weights["extra"] = torch.zeros(2)
    weights["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 2)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_sam(str(tmp_path))
    for part in (
        "missing: mask_decoder.iou_token.weight",
        "unknown: extra",
        "no_mask_embed.weight [1, 2] instead of [1, 16]",
    ):
        assert part in str(error.value)


def test_unknown_sources_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tiny, vit_b, vit_l, vit_h"):
        load_sam("vit_x")
    with pytest.raises(ModelError, match="does not describe a SAM"):
        (tmp_path / "config.json").write_text(json.dumps({"width": 3}))
        sam_config(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 1000), ("width", 100), ("channels", 36), ("decoder_heads", 7), ("mask_channels", 6)],
)
def test_sizes_that_can_not_work_are_refused(field: str, value: int) -> None:
    values = {"width": 96, "depth": 1, "heads": 3, "global_attention": (0,), field: value}
    with pytest.raises(ValueError, match=field):
        SamConfig(**values)
