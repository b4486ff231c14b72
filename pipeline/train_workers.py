"""`train-head --workers N`: the same training in several processes, one per GPU or per slot of CPU cores (Ray Train).

Ray starts the workers and torch's process group, and starts all of them anew when one is lost; then the training goes
on from its last stored state, as after a kill.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.train_head import TrainHead

ATTEMPTS: Final = 3  # times that lost workers are replaced
CORES: Final = 1  # of a worker; a GPU's host needs more threads, and Ray does not enforce it


def run_workers(args: TrainHead) -> dict[str, Any]:
    """Train with `args.workers` workers; -> training.json, which the first of them wrote.

    PipelineError: Ray Train is not installed, the cluster is too small, or a worker's own error as it was.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise PipelineError(f"--workers needs Ray Train ({error}): pip install 'frozen-lmm-grounding[train]'") from None
    from pipeline.runtime import start_ray
    from pipeline.train_head import choose_device
    from stages.train_head.heads.checkpoint import read_record

    gpus = choose_device(args.device) == "cuda"
    start_ray(args.ray_address, cores=None if args.ray_address else args.workers * CORES + 1)
    try:
        _require_room(ray, args, gpus)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="train-head-") as scratch:  # Ray's own notes; ours are in --out
            TorchTrainer(
                _work,
                train_loop_config={
                    "args": replace(_absolute(args), restart=False),
                    "device": "cuda" if gpus else "cpu",
                },
                torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=args.workers,
                    use_gpu=gpus,
                    resources_per_worker={"CPU": CORES} | ({"GPU": 1} if gpus else {}),
                ),
                run_config=RunConfig(
                    name="train-head", storage_path=scratch, failure_config=FailureConfig(max_failures=ATTEMPTS)
                ),
            ).fit()
    except TrainingFailedError as error:
        raise _told(error) from None
    finally:
        ray.shutdown()
    return read_record(args.out)


def _work(config: dict[str, Any]) -> None:
    """One worker's part."""
    import torch

    from pipeline.train_head import train_here

    if config["device"] == "cpu":
        torch.set_num_threads(CORES)
    train_here(config["args"], config["device"])


def _absolute(args: TrainHead) -> TrainHead:
    """The same with paths that do not depend on a worker's own folder."""
    where = args.cache if "://" in args.cache else str(Path(args.cache).resolve())
    images = args.images if args.images is None or "://" in args.images else str(Path(args.images).resolve())
    begin = args.init_from if args.init_from is None or "://" in args.init_from else str(Path(args.init_from).resolve())
    sam = None if args.sam_checkpoint is None else args.sam_checkpoint.resolve()
    return replace(args, cache=where, images=images, out=args.out.resolve(), init_from=begin, sam_checkpoint=sam)


def _require_room(ray: Any, args: TrainHead, gpus: bool) -> None:
    """Ray would wait for ever for what is not there."""
    kind, wanted = ("GPU", args.workers) if gpus else ("CPU", args.workers * CORES)
    found = ray.cluster_resources().get(kind, 0)
    if found < wanted:
        raise PipelineError(f"--workers {args.workers}: the cluster has {found:g} {kind}s; give fewer workers")


def _told(error: Exception) -> PipelineError:
    """A worker's error in one line."""
    failures = getattr(error, "worker_failures", {})
    first = failures[min(failures)] if failures else error
    reason = " ".join(str(getattr(first, "cause", None) or first).split())
    return PipelineError(f"training failed: {reason[-600:]}")
