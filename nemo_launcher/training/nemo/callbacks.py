# SPDX-License-Identifier: Apache-2.0
"""Progress reports of a training job."""

from __future__ import annotations

import math
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher.config.monitored import PREFIX, VAL_LOSS
from nemo_launcher.runtime.curve_file import CURVE_NAME
from nemo_launcher.runtime.progress import Progress
from nemo_launcher.runtime.progress_file import ProgressFile, read_progress
from nemo_launcher.training.curve import Curve


class TrainingProgress(Callback):
    """Shows step, loss, tokens/s and time left, and updates the files of progress and curve; on rank 0 only."""

    def __init__(self, progress_file: Path) -> None:
        self.progress: Progress | None = None
        self.file = ProgressFile(progress_file)
        self.curve = Curve(progress_file.with_name(CURVE_NAME))
        self._last_val_loss: float | None = None
        self._figures: dict[str, str] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the count, at the current step if the run was resumed."""
        if not trainer.is_global_zero:
            return
        if trainer.global_step:
            print(f"resuming at step {trainer.global_step} from {trainer.ckpt_path}", flush=True)
            before = read_progress(self.file.path)
            self._last_val_loss = None if before is None else before.val_loss
        self.curve.start(trainer.global_step)
        self.progress = Progress("training", pl_module.total_steps(), done=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Report the step that just ended."""
        if self.progress is None:
            return
        loss = float(trainer.callback_metrics["reduced_train_loss"])
        self.curve.add(trainer.global_step, loss, float(trainer.callback_metrics.get("lr", math.nan)))
        self._figures = {"loss": f"{loss:.3f}"}
        self.progress.advance(1, **self._with_validation(trainer, pl_module))
        if self.file.is_due():
            self._write_file(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation loss, and write it to the files."""
        if not trainer.sanity_checking and self.progress is not None:
            self._write_file(trainer)
            if self._figures:  # a step has been made
                self.progress.show(**self._with_validation(trainer, pl_module))
            if "val_loss" in trainer.callback_metrics:
                loss = float(trainer.callback_metrics["val_loss"])
                self.curve.add_validation(trainer.global_step, loss, _metrics(trainer))
                self.curve.write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Terminate the progress bar's line."""
        self._end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Terminate the progress bar's line before the error is printed."""
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.close()
            self._write_file(trainer)
            self.curve.end(trainer.global_step)

    def _write_file(self, trainer: Trainer) -> None:
        if self.progress is not None:
            progress = self.progress
            self.file.write(progress.done, progress.total, self._val_loss(trainer), progress.seconds_left)

    def _with_validation(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """Return the figures of the last step, validation and speed as text."""
        val_loss = self._val_loss(trainer)
        validated = ({} if val_loss is None else {"val_loss": val_loss}) | _metrics(trainer)
        figures = self._figures | {name: f"{value:.3f}" for name, value in validated.items()}
        return figures | {"tokens/s": f"{pl_module.figures.rates()['tokens_per_second']:,.0f}"}

    def _val_loss(self, trainer: Trainer) -> float | None:
        """Return the last validation loss, at first that of the run that is resumed; None without any."""
        value = trainer.callback_metrics.get("val_loss")
        if value is not None:
            self._last_val_loss = float(value)
        return self._last_val_loss


def _metrics(trainer: Trainer) -> dict[str, float]:
    """Return the metrics of the last validation, without val_loss."""
    logged = trainer.callback_metrics
    return {name: float(logged[name]) for name in logged if name.startswith(PREFIX) and name != VAL_LOSS}
