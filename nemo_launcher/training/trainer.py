# SPDX-License-Identifier: Apache-2.0
"""Lightning's Trainer from the documented `trainer` section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig

from nemo_launcher.config.ignored import LEARNING, keys_below
from nemo_launcher.config.literal import plain_mapping
from nemo_launcher.runtime import ranks
from nemo_launcher.training.checkpointing import AdapterCheckpoint
from nemo_launcher.training.loops import use_resumable_loops
from nemo_launcher.training.strategy import MegatronStrategy

# Read by the launcher and by this module, or by nobody; no argument of Trainer's.
_NOT_LIGHTNING = ("precision", "resume_from_checkpoint", "max_time", *keys_below("trainer", LEARNING[0]))
# Whole numbers of batches that YAML may hold as 5.0; Lightning takes that for a share.
_BATCHES = ("val_check_interval", "limit_train_batches", "limit_val_batches")


def make_trainer(config: DictConfig, callbacks: Sequence[Callback], folder: Path | None = None) -> Trainer:
    """Return the Trainer of a job; folder: where Lightning may look and write, in place of the current one.

    The frozen base carries `precision` (runtime.precision), so Lightning's own stays at 32: it neither casts nor
    autocasts. Time limits are training.time_limit's.
    """
    options = plain_mapping(config)
    options = {key: value for key, value in options.items() if key not in _NOT_LIGHTNING}
    options |= {key: int(options[key]) for key in _BATCHES if (options.get(key) or 0) > 1}
    if folder is not None:
        options["default_root_dir"] = str(folder)
    saving = [callback for callback in callbacks if isinstance(callback, AdapterCheckpoint)]
    options["accelerator"] = "gpu" if ranks.uses_gpu() else "cpu"
    trainer = Trainer(
        **options,
        strategy=MegatronStrategy(),
        precision="32-true",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=bool(saving),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    use_resumable_loops(trainer, *(callback.after_step for callback in saving))
    return trainer
