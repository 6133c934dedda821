# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, loggers, early stopping and time limits, from the `exp_manager` section.

Section and defaults are those of nemo_toolkit's exp_manager. It is not used itself: it moves existing files away at
each start, and picks the checkpoint to resume from by file name.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from nemo_launcher.config.load import Loaded
from nemo_launcher.config.monitored import logged_name
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections import exp_manager as sections
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import first_line
from nemo_launcher.training.nemo.checkpointing import AdapterCheckpoint
from nemo_launcher.training.nemo.time_limit import TimeLimit
from nemo_launcher.training.record import finished_summary
from nemo_launcher.training.resume import Start, checkpoints_folder

WANDB_NAME = "wandb_run.json"
"""File in the results folder with the id of the W&B run, so that a resumed training continues that run."""


def callbacks_of(job: Loaded[Learning]) -> list[Callback]:
    """Return the callbacks of a job, with the checkpoint callback last."""
    manager = job.section.exp_manager
    callbacks: list[Callback] = [TimeLimit(job.section.trainer.max_time, manager.max_time_per_run)]
    if manager.log_step_timing:
        from nemo.utils.exp_manager import TimingCallback

        callbacks.append(TimingCallback())
    if manager.create_early_stopping_callback:
        params = manager.early_stopping_callback_params or sections.EarlyStopping()
        callbacks.append(EarlyStopping(**vars(params) | {"monitor": logged_name(params.monitor)}))
    if manager.create_checkpoint_callback:
        name = manager.name or "default"
        callbacks.append(AdapterCheckpoint(checkpoints_folder(job), name, manager.checkpoint_callback_params))
    return callbacks


def add_loggers(trainer: Trainer, manager: sections.ExpManager, start: Start) -> None:
    """Attach the loggers of a job to its trainer; those of a resumed job continue where the checkpoint was saved.

    Raises UserError for files in the place of the loggers' folders, and if W&B does not start.
    """
    results = Path(manager.explicit_log_dir)
    loggers: list[Logger] = []
    if manager.create_tensorboard_logger:
        writer = manager.summary_writer_kwargs or sections.SummaryWriter()
        options = _given(writer)
        folder = _folder(results / (writer.sub_dir or ""), "create_tensorboard_logger")
        if any(folder.glob("events.out.tfevents.*")):  # hides what a killed run logged after its checkpoint
            options = {"purge_step": start.step, "default_hp_metric": start.path is None} | options
        loggers.append(TensorBoardLogger(save_dir=str(results), name="", version="", **options))
    if manager.create_wandb_logger:
        loggers.append(_wandb_logger(trainer, manager.wandb_logger_kwargs or sections.WandbLogger(), results, start))
    if manager.create_csv_logger:  # one file for each start: Lightning replaces an existing one
        folder = _folder(results / "csv", "create_csv_logger")
        loggers.append(CSVLogger(save_dir=str(results), name=folder.name, version=f"from_step_{start.step}"))
    if manager.create_mlflow_logger:
        loggers.append(_mlflow_logger(manager.mlflow_logger_kwargs or sections.MlflowLogger(), results))
    trainer.loggers = loggers


def _mlflow_logger(section: sections.MlflowLogger, results: Path) -> MLFlowLogger:
    options = _given(section)
    if "save_dir" not in options and "tracking_uri" not in options:
        _folder(results / "mlruns", "create_mlflow_logger")
    return MLFlowLogger(**{"save_dir": str(results / "mlruns")} | options)


def _given(section: object) -> dict[str, Any]:
    """Return the options of a section that are not null."""
    return {key: value for key, value in vars(section).items() if value is not None}


def _folder(path: Path, switch: str) -> Path:
    """Return the folder of a logger. Raises UserError if something else is in its place, before anything is trained."""
    if path.is_symlink() and not path.exists():
        what = "is a link to nothing"
    elif path.exists() and not path.is_dir():
        what = "is a file"
    else:
        return path
    key = f"exp_manager.{switch}"
    raise UserError(Problem(str(path), f"{what} in the place of a logger's folder", f"move it away, or {key}=False"))


def _wandb_logger(trainer: Trainer, section: sections.WandbLogger, results: Path, start: Start) -> WandbLogger:
    known = finished_summary(results / WANDB_NAME) or {}
    earlier = value_of(known, "id") if start.path is not None else None
    identity = section.id or earlier or secrets.token_hex(4)
    options = {key: value for key, value in vars(section).items() if value is not None or key == "resume"}
    _folder(Path(section.save_dir or results) / "wandb", "create_wandb_logger")
    logger = WandbLogger(**options | {"save_dir": section.save_dir or str(results), "id": identity})
    if trainer.is_global_zero:
        write_json(results / WANDB_NAME, {"id": identity})
        _start_wandb(logger)
    return logger


def _start_wandb(logger: WandbLogger) -> None:
    """Log in now, so that a mistake is reported before training. Raises UserError."""
    try:
        _ = logger.experiment
    except Exception as error:  # wandb's own types, which are not imported unless it is used
        what = f"W&B does not start: {first_line(error)}"
        fix = "set WANDB_API_KEY, or exp_manager.wandb_logger_kwargs.mode=offline, or create_wandb_logger=False"
        raise UserError(Problem("exp_manager.create_wandb_logger", what, fix)) from error
