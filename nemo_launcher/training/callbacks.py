"""What a training job shows while it runs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher.progress import Progress


class TrainingProgress(Callback):
    """Shows step, loss, tokens/s and time left."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step a resumed run goes on from."""
        if not trainer.is_global_zero:
            return
        if trainer.global_step:
            print(f"resuming at step {trainer.global_step} from {trainer.ckpt_path}", flush=True)
        self.progress = Progress("training", pl_module.total_steps(), done=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Show the step that ended."""
        if self.progress is None:
            return
        figures = {"loss": f"{float(trainer.callback_metrics['reduced_train_loss']):.3f}"}
        if "val_loss" in trainer.callback_metrics:
            figures["val_loss"] = f"{float(trainer.callback_metrics['val_loss']):.3f}"
        rate = pl_module.figures.rates()["tokens_per_second"]
        figures["tokens/s"] = f"{rate:,.0f}"
        self.progress.advance(1, **figures)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar's line."""
        if self.progress is not None:
            self.progress.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the bar's line before the error is printed."""
        if self.progress is not None:
            self.progress.close()
