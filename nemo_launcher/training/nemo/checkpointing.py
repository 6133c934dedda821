# SPDX-License-Identifier: Apache-2.0
"""Saving, selection and cleaning up of training checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from nemo_launcher.config.monitored import is_of_validation, logged_name
from nemo_launcher.config.sections.exp_manager import CheckpointCallback
from nemo_launcher.config.training_options import seconds_of
from nemo_launcher.training.best_checkpoints import BestCheckpoints, checkpoint_name, current_path
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

# Lightning's copy of the configuration, an OmegaConf tree; training.record has the one that checkpoints keep.
_LEFT_OUT = ("hyper_parameters", "hparams_name", "hparams_type")


class PlainCheckpointIO(CheckpointIO):
    """Lightning's plug-in for checkpoint files, with the format of training.checkpoint_file instead of pickles."""

    def save_checkpoint(self, checkpoint: dict[str, object], path: object, storage_options: object = None) -> None:
        """Write a checkpoint atomically."""
        write_checkpoint(path, {key: value for key, value in checkpoint.items() if key not in _LEFT_OUT})

    def load_checkpoint(self, path: object, map_location: object = None) -> dict[str, object]:
        """Read a checkpoint, with tensors on the CPU. Raises UserError if it is damaged or has another format."""
        try:
            return read_checkpoint(path)
        except (DamagedCheckpointError, ForeignCheckpointError) as error:
            raise unreadable(path, error) from error

    def remove_checkpoint(self, path: object) -> None:
        """Delete a checkpoint that is no longer kept."""
        Path(path).unlink(missing_ok=True)


class AdapterCheckpoint(Checkpoint):
    """Keeps the best checkpoints by a monitored metric, and the last one (`...-last.ckpt`) to resume from.

    params: `exp_manager.checkpoint_callback_params`. A checkpoint is saved after each validation, at every
    `every_n_train_steps` or `train_time_interval`, at the end of each epoch if nothing is validated, and at the end of
    training. Names and settings are those of NeMo's NeMoModelCheckpoint.
    """

    def __init__(self, folder: Path, name: str, params: CheckpointCallback) -> None:
        self.dirpath = os.path.realpath(folder)
        self.monitor = None if params.monitor is None else logged_name(params.monitor)
        self._of_validation = is_of_validation(params.monitor)
        self.filename = params.filename or (f"{name}--{{{self.monitor}:.4f}}-{{epoch}}")
        self.kept = BestCheckpoints(params.mode, params.save_top_k)
        self.last_model_path = ""
        self.current_score: torch.Tensor | None = None
        self.save_last = params.save_last
        self.save_best_model = params.save_best_model
        self.nemo_name = f"{name}.nemo"
        self.always_save_nemo = params.always_save_nemo
        self.save_nemo_on_train_end = params.save_nemo_on_train_end
        self.finished = False
        interval = params.train_time_interval
        self._seconds = float(seconds_of(interval) or 0) if interval else None
        self._steps = params.every_n_train_steps or 0
        self._epochs = params.every_n_epochs or (0 if interval or self._steps else 1)
        self._verbose = params.verbose
        self._names = names_of(self.filename)
        self._saved_at = 0.0  # when train_time_interval last elapsed
        self._triggered = False  # by steps or time; the next validation saves it

    @property
    def best_model_path(self) -> str:
        """The path of the best checkpoint, or empty. Lightning's loggers read this and the next properties."""
        return self.kept.best

    @property
    def best_model_score(self) -> torch.Tensor | None:
        """The metric of the best checkpoint."""
        return self.kept.best_score

    @property
    def best_k_models(self) -> dict[str, torch.Tensor]:
        """The metric of each kept checkpoint, by path."""
        return self.kept.scores

    @property
    def state_key(self) -> str:
        """A constant key: changed settings must not lose the record of the best checkpoint."""
        return CALLBACK

    def extra_nemo_path(self, *, at_end: bool) -> Path | None:
        """Return the path of a second export (always_save_nemo, save_nemo_on_train_end), or None."""
        wanted = self.always_save_nemo or (at_end and self.save_nemo_on_train_end)
        return Path(self.dirpath) / self.nemo_name if wanted else None

    # --- when ---------------------------------------------------------------------------------------------------

    def after_step(self, trainer: Trainer) -> None:
        """Save if steps or time require it, or at the end of an epoch that has no validation."""
        epoch_loop = trainer.fit_loop.epoch_loop
        due = self._steps > 0 and trainer.global_step % self._steps == 0
        if self._seconds is not None:
            due |= self._is_time(trainer, self._seconds)
        if due and (epoch_loop.is_validation_next or self._of_validation):
            self._triggered = True  # the last validation's metric belongs to another step
        if epoch_loop.is_validation_next:
            return
        if due or (not trainer.enable_validation and epoch_loop.is_epoch_complete):
            figures = _figures(trainer)
            if due and not self._of_validation:
                self._save_if_best(trainer, figures)
            self._save_last(trainer, figures)

    def _is_time(self, trainer: Trainer, seconds: float) -> bool:
        passed = bool(trainer.strategy.broadcast(time.monotonic() - self._saved_at >= seconds))
        if passed:
            self._saved_at = time.monotonic()
        return passed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation."""
        if trainer.sanity_checking:
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        epoch_loop.validated_step = trainer.global_step
        figures = _figures(trainer)
        if self._triggered or (self._epochs and (trainer.current_epoch + 1) % self._epochs == 0):
            self._save_if_best(trainer, figures)
        self._triggered = False
        self._save_last(trainer, figures)

    def save_for_next_start(self, trainer: Trainer) -> str:
        """Save a checkpoint for a training that stops early, whatever save_last is; return its path."""
        self._save_as_last(trainer, _figures(trainer))
        return self.last_model_path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished state, then load the best weights if they are kept."""
        self.finished = True
        self._save_last(trainer, _figures(trainer))
        if not self.save_last and self.last_model_path:
            self._remove(trainer, self.last_model_path, "")
        if self.save_best_model:
            load_best(pl_module, self.kept.best)

    # --- which --------------------------------------------------------------------------------------------------

    def _save_if_best(self, trainer: Trainer, figures: dict[str, torch.Tensor]) -> None:
        if self.kept.count == 0:
            return
        if self.monitor is None:  # the newest is the best
            path, before = self._new_path(trainer, figures, self.kept.best), self.kept.best
            self.kept.best = path
            self._save(trainer, path)
            if self.kept.count == 1:
                self._remove(trainer, before, path)
            return
        score = figures.get(self.monitor)
        if score is None or not trainer.strategy.reduce_boolean_decision(self.kept.is_better(score)):
            return  # not logged yet, or not among the best
        replaced = self.kept.evict_worst()
        path = self._new_path(trainer, figures, replaced)
        self.kept.add(path, score)
        self.current_score = self.kept.scores[path]
        if self._verbose and trainer.is_global_zero:
            best = f"best {float(self.kept.best_score or 0):0.5f}"
            print(
                f"step {trainer.global_step}: {self.monitor} is {float(score):0.5f} ({best}), saved {path}", flush=True
            )
        self._save(trainer, path)
        self._remove(trainer, replaced, path)

    def _new_path(self, trainer: Trainer, figures: dict[str, torch.Tensor], replaced: str) -> str:
        """Return a path that no file has, except the one to be replaced; rank 0 decides."""
        name = Path(self.dirpath) / checkpoint_name(self.filename, figures)
        path, version = str(name), 0
        while trainer.strategy.broadcast(Path(path).exists()) and path != replaced:
            version += 1
            path = str(name.with_name(f"{name.name.removesuffix(SUFFIX)}-v{version}{SUFFIX}"))
        return path

    def _save_last(self, trainer: Trainer, figures: dict[str, torch.Tensor]) -> None:
        if self.save_last:
            self._save_as_last(trainer, figures)

    def _save_as_last(self, trainer: Trainer, figures: dict[str, torch.Tensor]) -> None:
        unknown = {name: torch.tensor(math.nan) for name in ("val_loss", self.monitor) if name is not None}
        known = unknown | figures  # before the first validation
        previous = self.last_model_path
        self.last_model_path = os.path.join(self.dirpath, checkpoint_name(f"{self.filename}{LAST}", known))
        self._save(trainer, self.last_model_path)
        self._remove(trainer, previous, self.last_model_path)

    def _save(self, trainer: Trainer, path: str) -> None:
        trainer.save_checkpoint(path)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)
            if isinstance(logger, TensorBoardLogger):  # so that a kill loses no log entry before the checkpoint
                logger.experiment.flush()

    def _remove(self, trainer: Trainer, previous: str, current: str) -> None:
        """Delete a checkpoint that was replaced, unless it is the new file or lies outside this folder."""
        inside = previous and Path(self.dirpath).absolute() in Path(previous).absolute().parents
        if previous != current and inside:
            trainer.strategy.remove_checkpoint(previous)

    def state_dict(self) -> dict[str, object]:
        """Return the kept checkpoints, and whether the next validation should save one."""
        return {
            "monitor": self.monitor,
            "dirpath": self.dirpath,
            "best_k_models": self.kept.scores,
            "best_model_path": self.kept.best,
            "best_model_score": self.kept.best_score,
            "current_score": self.current_score,
            "last_model_path": self.last_model_path,
            "triggered": self._triggered,
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restore the kept checkpoints that still exist, in this folder if the results were moved."""
        self.kept.restore(state_dict, Path(self.dirpath))
        self.last_model_path = current_path(Path(self.dirpath), state_dict["last_model_path"])
        self._triggered = bool(state_dict["triggered"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete checkpoints that a killed run had replaced but not yet deleted."""
        self._saved_at = time.monotonic()
        folder, resumed = Path(self.dirpath), os.path.realpath(trainer.ckpt_path or "")
        if not trainer.ckpt_path or Path(resumed).parent != folder:
            return
        if resumed.endswith(LAST + SUFFIX):
            self.last_model_path = resumed  # deleted once the next one is saved
        if not trainer.is_global_zero:
            return
        kept = {*self.kept.scores, self.kept.best, self.last_model_path, resumed}
        all_are_kept = self.monitor is None and self.kept.count == -1
        for path in folder.glob(f"*{LAST if all_are_kept else ''}{SUFFIX}"):
            with contextlib.suppress(OSError):
                if str(path) not in kept and self._names.fullmatch(path.name) and is_ours(path):
                    path.unlink()


def checkpoints_of(trainer: Trainer) -> AdapterCheckpoint | None:
    """Return what saves a trainer's checkpoints; None: none are kept (exp_manager.create_checkpoint_callback)."""
    callback = trainer.checkpoint_callback
    return callback if isinstance(callback, AdapterCheckpoint) else None


def _figures(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the metrics logged so far, with `epoch` (0-based) and `step`."""
    counts = {"epoch": torch.tensor(trainer.current_epoch), "step": torch.tensor(trainer.global_step)}
    return {**{name: torch.as_tensor(value).clone() for name, value in trainer.callback_metrics.items()}, **counts}
