# SPDX-License-Identifier: Apache-2.0
"""When checkpoints are saved, which are kept, and what a run that was killed left of them."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from nemo_launcher.config.sections.exp_manager import CheckpointCallback
from nemo_launcher.config.training_options import seconds_of
from nemo_launcher.training.checkpoint_file import read_checkpoint, unreadable, write_checkpoint
from nemo_launcher.training.checkpoint_header import (
    CALLBACK,
    LAST,
    SUFFIX,
    DamagedCheckpointError,
    ForeignCheckpointError,
    is_ours,
    names_of,
)
from nemo_launcher.training.nemo.best_weights import load_best

# Lightning's copy of the configuration, an OmegaConf tree; a checkpoint has its own (training.record).
_LEFT_OUT = ("hyper_parameters", "hparams_name", "hparams_type")


class PlainCheckpointIO(CheckpointIO):
    """Lightning's hook for the form of its files: ours (training.checkpoint_file), never a pickle."""

    def save_checkpoint(self, checkpoint: dict[str, object], path: object, storage_options: object = None) -> None:
        """Write a checkpoint, whole or not at all."""
        write_checkpoint(path, {key: value for key, value in checkpoint.items() if key not in _LEFT_OUT})

    def load_checkpoint(self, path: object, map_location: object = None) -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU. Raises UserError for one that is damaged or of another form."""
        try:
            return read_checkpoint(path)
        except (DamagedCheckpointError, ForeignCheckpointError) as error:
            raise unreadable(path, error) from error

    def remove_checkpoint(self, path: object) -> None:
        """Remove a checkpoint that is no longer among those to keep."""
        Path(path).unlink(missing_ok=True)


class AdapterCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoints by a monitored figure, and the last one (`...-last.ckpt`) for the next start.

    params: `exp_manager.checkpoint_callback_params`. A checkpoint is saved after each validation, every
    `every_n_train_steps` or `train_time_interval` too, at the end of each epoch where nothing is validated, and at the
    end of training. Names and settings are those of NeMo's NeMoModelCheckpoint.
    """

    def __init__(self, folder: Path, name: str, params: CheckpointCallback) -> None:
        interval, steps = params.train_time_interval, params.every_n_train_steps
        super().__init__(
            dirpath=folder,
            filename=params.filename or f"{name}--{{{params.monitor}:.4f}}-{{epoch}}",
            monitor=params.monitor,
            mode=params.mode,
            verbose=params.verbose,
            save_last=params.save_last,
            save_top_k=params.save_top_k,
            every_n_epochs=params.every_n_epochs or (None if interval or steps else 1),
            every_n_train_steps=steps or None,
            train_time_interval=timedelta(seconds=seconds_of(interval) or 0) if interval else None,
            save_on_train_epoch_end=False,
        )
        self.CHECKPOINT_NAME_LAST = f"{self.filename}{LAST}"
        self._names = names_of(str(self.filename))
        self.save_best_model = params.save_best_model
        self.nemo_name = f"{name}.nemo"
        self.always_save_nemo = params.always_save_nemo
        self.save_nemo_on_train_end = params.save_nemo_on_train_end
        self.finished = False
        self._triggered = False  # by steps or time, and left to the validation that comes next

    @property
    def state_key(self) -> str:
        """The same whatever the settings: those that may change must not lose which checkpoint is the best."""
        return CALLBACK

    def second_nemo(self, *, at_end: bool) -> Path | None:
        """Return where an export goes besides model.nemo_path (always_save_nemo, save_nemo_on_train_end)."""
        wanted = self.always_save_nemo or (at_end and self.save_nemo_on_train_end)
        return Path(str(self.dirpath)) / self.nemo_name if wanted else None

    # --- when ---------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing yet: the step is not logged (after_step)."""

    def on_train_epoch_end(self, *_: Any) -> None:
        """Nothing: the epoch's last step, or its validation, has saved."""

    def after_step(self, trainer: Trainer) -> None:
        """Save where steps or time say so, or at the end of an epoch that nothing will be validated in."""
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        due = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if self._train_time_interval is not None:
            due |= self._is_time(trainer)
        if due and (epoch_loop.is_validation_next or self.monitor == "val_loss"):
            self._triggered = True  # the last validation's figure is another step's
        if epoch_loop.is_validation_next:
            return
        if due or (not trainer.enable_validation and epoch_loop._num_ready_batches_reached()):
            candidates = self._monitor_candidates(trainer)
            if due and self.monitor != "val_loss":
                self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _is_time(self, trainer: Trainer) -> bool:
        assert self._train_time_interval is not None
        before: float = getattr(self, "_last_time_checked", None) or 0.0
        passed = time.monotonic() - before >= self._train_time_interval.total_seconds()
        passed = bool(trainer.strategy.broadcast(passed))
        if passed:
            self._last_time_checked = time.monotonic()
        return passed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation."""
        if trainer.sanity_checking:
            return
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        epoch_loop.validated_step = trainer.global_step
        candidates = self._monitor_candidates(trainer)
        if self._triggered or (self._every_n_epochs and (trainer.current_epoch + 1) % self._every_n_epochs == 0):
            self._save_topk_checkpoint(trainer, candidates)
        self._triggered = False
        self._save_last_checkpoint(trainer, candidates)

    def save_for_next_start(self, trainer: Trainer) -> str:
        """Save where a training stops that is to go on later, whatever save_last says; return the file's path."""
        self._save_as_last(trainer, self._monitor_candidates(trainer))
        return str(self.last_model_path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save that training is finished, then go back to the best weights, where they are kept."""
        self.finished = True
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        stopped_at = str(getattr(self, "last_model_path", ""))
        if not self.save_last and stopped_at and self._should_remove_checkpoint(trainer, stopped_at, ""):
            self._remove_checkpoint(trainer, stopped_at)
        if self.save_best_model:
            load_best(pl_module, self.best_model_path)

    # --- which --------------------------------------------------------------------------------------------------

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        if self.save_last:
            self._save_as_last(trainer, monitor_candidates)

    def _save_as_last(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        unknown = {"val_loss": torch.tensor(float("nan"))}  # before the first validation; Lightning writes 0
        path = self.format_checkpoint_name(unknown | monitor_candidates, self.CHECKPOINT_NAME_LAST)
        previous, self.last_model_path = str(getattr(self, "last_model_path", "")), path
        self._save_checkpoint(trainer, path)
        if previous and self._should_remove_checkpoint(trainer, previous, path):
            self._remove_checkpoint(trainer, previous)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):  # what is logged so far is as safe as the checkpoint
                logger.experiment.flush()

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        inside = Path(str(self.dirpath)).absolute() in Path(previous).absolute().parents
        return previous != current and inside

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoints are kept, and whether the next validation is to keep one."""
        return {**super().state_dict(), "triggered": self._triggered}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on with the checkpoints that are still there, in this folder where the results were moved."""
        kept = {self._found(path): score for path, score in state_dict["best_k_models"].items()}
        kept.pop("", None)
        best, score = self._found(state_dict["best_model_path"]), state_dict["best_model_score"]
        if best and best not in kept and score is not None:
            kept[best] = score
        order = sorted(kept, key=lambda path: float(kept[path]), reverse=self.mode == "max")
        if self.save_top_k >= 0:  # fewer than before, but never the best alone gone
            order = order[: max(self.save_top_k, 1)]
        self.best_k_models = {path: kept[path] for path in kept if path in order}
        self.last_model_path = self._found(state_dict["last_model_path"])
        self._triggered = bool(state_dict["triggered"])
        self.best_model_path = best
        if order:
            self.best_model_path, self.best_model_score = order[0], kept[order[0]]
            self.kth_best_model_path, self.kth_value = order[-1], kept[order[-1]]

    def _found(self, path: str) -> str:
        here = Path(str(self.dirpath)) / Path(path).name
        return str(here) if path and here.is_file() else path if path and Path(path).is_file() else ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a run that was killed had replaced already and not removed yet."""
        super().on_train_start(trainer, pl_module)
        folder, resumed = Path(str(self.dirpath)), os.path.realpath(trainer.ckpt_path or "")
        if not trainer.ckpt_path or Path(resumed).parent != folder:
            return
        if resumed.endswith(LAST + SUFFIX):
            self.last_model_path = resumed  # it goes when the next one is there
        if not trainer.is_global_zero:
            return
        kept = {*self.best_k_models, self.best_model_path, self.last_model_path, resumed}
        all_are_kept = self.monitor is None and self.save_top_k == -1
        for path in folder.glob(f"*{LAST if all_are_kept else ''}{SUFFIX}"):
            with contextlib.suppress(OSError):
                if str(path) not in kept and self._names.fullmatch(path.name) and is_ours(path):
                    path.unlink()
