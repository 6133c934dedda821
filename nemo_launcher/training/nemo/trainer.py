# SPDX-License-Identifier: Apache-2.0
"""Lightning's Trainer, from the documented `trainer` section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from nemo_launcher.config.sections.learning import LearningTrainer
from nemo_launcher.runtime import ranks
from nemo_launcher.training.nemo.checkpointing import AdapterCheckpoint
from nemo_launcher.training.nemo.loops import use_resumable_loops
from nemo_launcher.training.nemo.strategy import MegatronStrategy


def make_trainer(config: LearningTrainer, callbacks: Sequence[Callback], folder: Path | None = None) -> Trainer:
    """Return the Trainer of a job; folder: Lightning's default_root_dir, None for the current directory.

    The frozen base is already in `precision` (runtime.precision), so Lightning's own precision stays at 32: it neither
    casts nor autocasts. Time limits are handled in training.nemo.time_limit.
    """
    saving = [callback for callback in callbacks if isinstance(callback, AdapterCheckpoint)]
    trainer = Trainer(
        devices=config.devices,
        num_nodes=config.num_nodes,
        accelerator="gpu" if ranks.uses_gpu() else "cpu",
        strategy=MegatronStrategy(),
        precision="32-true",
        max_epochs=config.max_epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        log_every_n_steps=config.log_every_n_steps,
        val_check_interval=_batches(config.val_check_interval),
        check_val_every_n_epoch=config.check_val_every_n_epoch,
        limit_train_batches=_batches(config.limit_train_batches),
        limit_val_batches=_batches(config.limit_val_batches),
        num_sanity_val_steps=config.num_sanity_val_steps,
        gradient_clip_val=config.gradient_clip_val,
        benchmark=config.benchmark,
        deterministic=config.deterministic,
        default_root_dir=None if folder is None else str(folder),
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=bool(saving),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    use_resumable_loops(trainer, *(callback.after_step for callback in saving))
    return trainer


def _batches(value: float | None) -> float | None:
    """Return a number of batches above 1 as an integer: Lightning takes 5.0 for a fraction."""
    return int(value) if value is not None and value > 1 else value
