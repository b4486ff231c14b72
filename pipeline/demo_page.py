"""`run_pipeline.py demo-page`: a web page on which a frozen LMM answers, and its words show what they point at."""

from __future__ import annotations

import json
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from manifests.errors import ModelError, PipelineError


@dataclass(kw_only=True, slots=True)
class DemoPage:
    """Serve a web page: pick or upload a picture, ask, and point at the words of the answer.

    Anyone who can reach the address can use the LMM: --host 127.0.0.1 is this machine alone. Ctrl-C stops it.
    """

    lmm: str = "tiny"
    """A preset (`run_pipeline.py lmms`), a folder with a checkpoint, or a Hugging Face id."""
    head: str = "tiny"
    """Folder of a head that was trained with this LMM, hf://user/name, or tiny, the embedded one."""
    head_class: str | None = None
    """Whose code a head is that is none of this program's: module:Class. It is run."""
    sam_checkpoint: Path | None = None
    """SAM's weights, if they are not where they belong."""
    device: str = "auto"
    """cuda, cpu or auto."""
    gpus: int = 1
    """The LMM is spread over so many."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a checkpoint."""
    max_answer_tokens: int = 256
    """An answer is cut off after so many."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0: everyone in the network."""
    port: int = 7860
    """Port to serve at; 0: any that is free."""


def run(args: DemoPage) -> None:
    """Load everything, serve, print the address (the last line is JSON), wait for Ctrl-C or SIGTERM."""
    start = time.perf_counter()
    if args.max_answer_tokens < 1:
        raise PipelineError(f"--max-answer-tokens {args.max_answer_tokens}: must be at least 1")
    if not 0 <= args.port < 1 << 16:
        raise PipelineError(f"--port {args.port}: must be between 0 and 65535")
    try:
        from stages.ground.page import open_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise ModelError("the page needs Gradio: pip install 'frozen-lmm-grounding[page]'") from None
    from pipeline.train_head import choose_device
    from stages.ground import Grounder
    from stages.ground.page_actions import About, Page

    logging.getLogger("httpx").setLevel(logging.WARNING)
    grounder = Grounder.load(
        args.lmm,
        args.head,
        device=choose_device(args.device),
        gpus=args.gpus,
        sam_checkpoint=args.sam_checkpoint,
        head_class=args.head_class,
        trust_remote_code=args.trust_remote_code,
    )
    page = Page(grounder, About(lmm=args.lmm, head=args.head, max_answer_tokens=args.max_answer_tokens))
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with open_page(page, args.host, args.port) as address:
        print(f"demo-page: {address} (Ctrl-C stops it)")
        seconds = round(time.perf_counter() - start, 1)
        print(json.dumps({"command": "demo-page", "address": address, "seconds_to_start": seconds}), flush=True)
        try:
            stopped.wait()
        except KeyboardInterrupt:
            print("stopped")
