"""The samples that a command asks for: generated scenes are written first, training samples may be decontaminated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import PipelineError

if TYPE_CHECKING:
    from manifests.overlap import Decontamination
    from manifests.schema import Sample


def data_root(dataset: str, given: Path | None) -> Path:
    """Where the data of a dataset are: as given, or the folder of generated scenes."""
    if given is None and not dataset.startswith(("scenes", "shifted")):
        raise PipelineError(f"--dataset {dataset} needs --data-root, the folder that holds its files")
    return given or Path("data/scenes")


def ready_root(args: Any) -> Path:
    """`data_root` of --dataset and --data-root, the scenes written if they are asked for and not there."""
    from manifests.scenes.write import write_scenes

    root = data_root(args.dataset, args.data_root)
    if args.data_root is None:
        write_scenes(root)
    return root


def decontamination(args: Any, root: Path) -> Decontamination | None:
    """What --decontaminate asks for, if it does."""
    from tqdm import tqdm

    from manifests.overlap import Decontamination

    if not args.decontaminate:
        return None
    return Decontamination(root, lambda names: tqdm(names, desc="looking for images", unit="dataset", leave=False))


def build_samples(args: Any) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of --dataset, and the manifest's meta; prints what --decontaminate dropped."""
    from manifests.build import build

    root = ready_root(args)
    without = decontamination(args, root)
    options: dict[str, Any] = {"keep": without.keep} if without else {}
    options |= {"splits": args.splits, "limit": args.limit, "sentences": args.sentences, "context": args.context}
    samples = build(args.dataset, root, **options)
    if without:
        print("\n".join(without.lines()), flush=True)
    return samples, manifest_meta(args, without)


def manifest_meta(args: Any, without: Decontamination | None) -> dict[str, Any]:
    """What a manifest says of itself."""
    meta = {"dataset": args.dataset, "sentences": args.sentences, "context": args.context, "limit": args.limit}
    return meta | ({"decontaminated": without.report()} if without else {})
