"""`run_pipeline.py push-head`: a head, with what is known of it, to the Hugging Face Hub."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import IdentityMismatch, PipelineError
from pipeline.train_head import prepare_out

if TYPE_CHECKING:
    from stages.train_head.heads.base import Head


@dataclass(kw_only=True, slots=True)
class PushHead:
    """Upload a head with a model card to the Hugging Face Hub; others use it as --head hf://user/name.

    The token is the one of `hf auth login`, or of the variable HF_TOKEN. training.json and metrics.json go as they are,
    with the paths of this machine that they name.
    """

    repo: str
    """user/name on the Hub; made if it is not there."""
    head: str = "runs/head"
    """Folder of a head (the best one of a training is in its best/), or hf://user/name[@revision]."""
    head_class: str | None = None
    """Whose code a head is that is none of this program's: module:Class. It is run."""
    evaluation: Path | None = None
    """--out folder of an `evaluate` of this head: its numbers go into the card, metrics.json beside the weights."""
    license: str | None = None
    """Licence that you give the head, as the Hub calls it (apache-2.0, cc-by-nc-4.0, …); imported ones keep theirs."""
    private: bool = False
    """Make the repository private, if it is not there yet."""
    dry_run: bool = False
    """Write the files to --out, print the card, upload nothing."""
    out: Path = Path("runs/hub")
    """Folder for --dry-run."""


def run(args: PushHead) -> None:
    """Put the files together, say what they are, upload them."""
    from huggingface_hub.utils import validate_repo_id

    from stages.train_head.heads import head_class
    from stages.train_head.heads.checkpoint import is_head, load_head
    from stages.train_head.heads.hub import FILES, SCHEME, fetch_head, hub_errors, upload

    with hub_errors(args.repo, writing=True):
        validate_repo_id(args.repo)
    folder = fetch_head(args.head)
    head = load_head(folder, head_class(args.head_class) if args.head_class else None)
    if args.license is not None:
        give_license(head, args.license)
    if args.evaluation is not None:
        head.evaluation = evaluation_of(head, folder, args.evaluation)
    if args.dry_run:
        prepare_out(args.out, "head", is_head)
        (args.out / "README.md").unlink(missing_ok=True)  # save_pretrained never replaces one
    with nullcontext(args.out) if args.dry_run else tempfile.TemporaryDirectory(prefix="push-head-") as out:
        head.save_pretrained(out, model_card_kwargs={"repo": args.repo})
        sizes = {name: file.stat().st_size for name in FILES if (file := Path(out) / name).is_file()}
        card = (Path(out) / "README.md").read_text(encoding="utf-8")
        if args.dry_run:
            print(card)
        what = f"{head.name}, {sum(p.numel() for p in head.parameters()):,} parameters"
        print(f"push-head: {what}, to {SCHEME}{args.repo}{' (private)' if args.private else ''}")
        for name, size in (sizes | {"together": sum(sizes.values())}).items():
            print(f"  {name:<18} {size:>14,} bytes")
        address = None if args.dry_run else upload(Path(out), args.repo, private=args.private or None)
    print(f"nothing was uploaded; the files are in {args.out}" if address is None else f"uploaded: {address}")
    print(json.dumps({"repo": args.repo, "commit": address, "files": sizes, "bytes": sum(sizes.values())}))


def give_license(head: Head, name: str) -> None:
    """Notes the licence in the head's record. PipelineError: it was made from weights that have one already."""
    if "provenance" in head.record:
        theirs = head.record["provenance"].get("licence", "not recorded")
        raise PipelineError(
            f"--license {name}: it derives from published weights, whose licence ({theirs}) binds it: leave it out"
        )
    head.record["license"] = name


def evaluation_of(head: Head, folder: Path, evaluation: Path) -> dict[str, Any]:
    """metrics.json of an evaluation. PipelineError: there is none; IdentityMismatch: of another head, other priors."""
    from cache.derive import content_of
    from cache.identity import differing
    from stages.evaluate.evaluation import is_evaluation, read_metrics
    from stages.train_head.heads.checkpoint import METRICS_FILE, read_json, weights_digest

    if not is_evaluation(evaluation):
        raise PipelineError(f"--evaluation {evaluation} holds no metrics.json of `evaluate`: give its --out folder")
    read_metrics(evaluation)  # refuses what an older version wrote, and what is damaged
    metrics = read_json(evaluation / METRICS_FILE, "evaluate again")
    ours = {"priors": content_of(head.priors or {}), "weights": weights_digest(folder)}
    theirs = {"priors": content_of(metrics["run"].get("identity", {})), "weights": metrics["run"].get("weights")}
    if found := differing(ours, theirs):
        fields = "; ".join(
            f"{each.field.removeprefix('priors.')}: the head has {each.stored}, the evaluation {each.given}"
            for each in found
        )
        raise IdentityMismatch(f"--evaluation {evaluation} is not of this head: {fields}; evaluate this one")
    return metrics
