"""What a training tells while it runs: a progress bar, and scalars and mask pictures for TensorBoard.

tensorboard --logdir runs/head/logs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm


class TrainingLog:
    """Nothing is written or shown by workers that do not lead."""

    def __init__(self, folder: Path, priors: Any, recipe: Any, device: str, *, shown: bool) -> None:
        """`folder`: for TensorBoard's files. Pictures are of the first validation samples."""
        self.folder, self.priors, self.recipe, self.device, self.shown = folder, priors, recipe, device, shown
        self.bar: Any = None
        self.board: Any = None
        self.objects = 0
        self.scores: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.shown:
            self.bar = tqdm(desc="train", unit="step", smoothing=0.05)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.bar, self.board):
            if each is not None:
                each.close()

    def step(self, news: Mapping[str, Any]) -> None:
        """After every step: what `train` tells."""
        if not self.shown:
            return
        bar, step = self.bar, news["step"]
        if bar.total is None:
            bar.total, bar.initial = news["steps"], step - 1
            bar.n = step - 1
            if step > 1:
                tqdm.write(f"going on from step {step - 1}")
        self._board(step - 1)
        self.objects += news["objects"]
        elapsed = bar.format_dict["elapsed"]
        shares = {"loss": f"{news['loss']:.3f}", **self.scores}
        waited = 100 * news["waiting"] / max(1e-9, news["seconds"])
        shown = ", ".join(f"{name} {value}" for name, value in shares.items())
        speed = self.objects / max(1e-9, elapsed)
        bar.set_postfix_str(f"{shown}, {speed:.0f} objects/s, {waited:.0f} % wait", refresh=False)
        bar.update()
        if step % 10 == 0 or step == news["steps"]:
            for name, value in news["parts"].items():
                self.board.add_scalar(f"loss/{name}", value, step)
            for name in ("loss", "lr", "norm"):
                self.board.add_scalar(f"train/{name}", news[name], step)
            self.board.add_scalar("speed/objects_per_s", speed, step)
            self.board.add_scalar("speed/data_wait_share", waited / 100, step)

    def validation(self, news: Mapping[str, Any], head: Any) -> None:
        """After every validation: a line, its scores, and pictures."""
        if not self.shown:
            return
        from stages.train_head.trainer import validation_samples
        from stages.train_head.validation import draw_masks

        numbers = {name: value for name, value in news.items() if name not in ("best", "seconds")}
        tqdm.write("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()))
        board = self._board(news["step"])
        scores = {name: value for name, value in news.items() if name.startswith("val_")}
        for name, value in scores.items():
            board.add_scalar(f"validation/{name.removeprefix('val_')}", value, news["step"])
        if scores:
            self.scores = {"cIoU": f"{list(scores.values())[-1]:.3f}"}
            few = validation_samples(self.priors, self.recipe)[:4]
            picture = draw_masks(head, self.priors, few, self.device)
            board.add_image("attention, truth, coarse, refined", picture[None], news["step"])
            board.flush()

    def _board(self, step: int) -> Any:
        """TensorBoard's writer; what a killed run wrote after its last stored state is hidden."""
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        return self.board
