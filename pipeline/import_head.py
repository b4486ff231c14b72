"""`run_pipeline.py import-head`: a published F-LMM head becomes a head folder of this program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import PipelineError
from pipeline.train_head import prepare_out

if TYPE_CHECKING:
    from cache.priors import Priors
    from stages.train_head.heads.grounding_head import GroundingHead


@dataclass(kw_only=True, slots=True)
class ImportHead:
    """Convert a published F-LMM head (licence of its weights: non-commercial) for a cache of the LMM it belongs to."""

    file: Path
    """The published checkpoint: .pth (read without running its code) or .safetensors."""
    cache: str = "runs/cache"
    """A cache of the priors that the head is for: a folder, s3://bucket/prefix, or an .h5 file of `cache export`."""
    out: Path = Path("runs/head")
    """Folder for the head: weights, config, training.json with where it is from."""


def run(args: ImportHead) -> None:
    """Check the checkpoint against the cache, convert it, say what it is."""
    from cache.priors import Priors
    from stages.extract.sam import SAM_PRESETS
    from stages.train_head.heads.checkpoint import is_head, save_head
    from stages.train_head.heads.published import load_published, published_shape, read_published

    shape = published_shape(read_published(args.file), str(args.file))
    priors = Priors.open(args.cache, need_images=False)
    head = build(priors, shape.base_width, shape.input_size)
    provenance = load_published(head, args.file)
    parameters = sum(p.numel() for p in head.parameters())
    prepare_out(args.out, "head", is_head)
    head.record = {
        "command": "import-head",
        "head": head.name,
        "parameters": parameters,
        "cache": args.cache,
        "lmm": priors.store.meta.soft.get("lmm", "unknown"),
        "provenance": provenance,
    }
    save_head(head, args.out)
    if "vit_l" in shape.sams and head.config.sam != SAM_PRESETS["vit_l"]:
        print("note: the published heads were trained on embeddings of SAM vit_l, this cache's are of another SAM")
    print(
        f"import-head: {parameters:,} parameters, from {args.file.name} (licence: {provenance['licence']}); "
        f"keyword selector {provenance['selector']}; head: {args.out}"
    )


def build(priors: Priors, base_width: int, input_size: int) -> GroundingHead:
    """An untrained head for these priors and their SAM. PipelineError: they were extracted without SAM."""
    from stages.extract.sam import SamConfig
    from stages.train_head.heads.base import PriorShape
    from stages.train_head.heads.grounding_head import GroundingConfig, GroundingHead

    images = priors.identity.get("images")
    if images is None:
        raise PipelineError(f"{priors.store.name} was made without SAM, which this head refines with: extract again")
    sam = {name: value for name, value in images["identity"]["sam"].items() if name not in ("weights", "dtype", "name")}
    head = GroundingHead(
        PriorShape(channels=priors.channels, layers=priors.layers, width=priors.width),
        GroundingConfig(base_width=base_width, input_size=input_size, sam=SamConfig.from_dict(sam)),
    )
    head.priors = priors.identity
    return head
