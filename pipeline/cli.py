"""The command line: one subcommand per stage, options from the dataclasses beside the commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from manifests.errors import PipelineError
from pipeline import (
    ablate,
    analyze,
    cache,
    compare,
    demo_page,
    evaluate,
    extract,
    ground,
    import_head,
    inspect,
    manifest,
    push_head,
    train_head,
)

Command = (
    Annotated[extract.Extract, tyro.conf.subcommand("extract")]
    | Annotated[train_head.TrainHead, tyro.conf.subcommand("train-head")]
    | Annotated[evaluate.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[ground.Ground, tyro.conf.subcommand("ground")]
    | Annotated[compare.Compare, tyro.conf.subcommand("compare")]
    | Annotated[import_head.ImportHead, tyro.conf.subcommand("import-head")]
    | Annotated[push_head.PushHead, tyro.conf.subcommand("push-head")]
    | Annotated[analyze.Analyze, tyro.conf.subcommand("analyze")]
    | Annotated[ablate.Ablate, tyro.conf.subcommand("ablate")]
    | Annotated[demo_page.DemoPage, tyro.conf.subcommand("demo-page")]
    | Annotated[manifest.Manifest, tyro.conf.subcommand("manifest")]
    | Annotated[cache.Cache, tyro.conf.subcommand("cache")]
    | Annotated[inspect.LMMs, tyro.conf.subcommand("lmms")]
)
RUN: dict[type, Callable[[Any], None]] = {
    extract.Extract: extract.run,
    train_head.TrainHead: train_head.run,
    evaluate.Evaluate: evaluate.run,
    ground.Ground: ground.run,
    compare.Compare: compare.run,
    import_head.ImportHead: import_head.run,
    push_head.PushHead: push_head.run,
    analyze.Analyze: analyze.run,
    ablate.Ablate: ablate.run,
    demo_page.DemoPage: demo_page.run,
    manifest.Manifest: manifest.run_manifest,
    cache.Cache: cache.run_cache,
    inspect.LMMs: inspect.run_lmms,
}
SHORT = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)  # `cache info`, not `cache action:info`
DESCRIPTION = "Ground a frozen large multimodal model: extract its attention priors once, train heads, evaluate, talk."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 2 an error that the user can mend, printed as one line."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    args = tyro.cli(Command, prog="run_pipeline.py", description=DESCRIPTION, args=argv, config=SHORT)  # type: ignore[call-overload]
    try:
        RUN[type(args)](args)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written, a file in the place of a folder
        where = f"{error.filename}: " if error.filename else ""
        cure = "free some" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its rights"
        reason = f"{error.strerror}; {cure}, or choose another place" if error.strerror else str(error) or repr(error)
        print(f"error: {where}{' '.join(reason.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
