# SPDX-License-Identifier: Apache-2.0
"""What the `exp_manager` section asks for: checkpoints, loggers, early stopping, time limits.

The section and its defaults are those of nemo_toolkit's exp_manager, which this replaces: it moves a folder's files
away at each start, and chooses checkpoints by their names.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig

from nemo_launcher.config.literal import plain_mapping
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import first_line
from nemo_launcher.training.checkpointing import AdapterCheckpoint
from nemo_launcher.training.record import finished_summary
from nemo_launcher.training.resume import Start, checkpoints_folder
from nemo_launcher.training.time_limit import TimeLimit

WANDB_NAME = "wandb_run.json"
"""Keeps the id of the W&B run, in the folder of the results, so that the next start goes on with it."""


def callbacks_of(config: DictConfig) -> list[Callback]:
    """Return the callbacks of a job, its checkpoints last."""
    manager = plain_mapping(config.exp_manager)
    callbacks: list[Callback] = [TimeLimit(config.trainer.get("max_time"), manager.get("max_time_per_run"))]
    if manager.get("log_step_timing"):
        from nemo.utils.exp_manager import TimingCallback

        callbacks.append(TimingCallback())
    if manager.get("create_early_stopping_callback"):
        # NeMo's defaults, other than Lightning's
        options = {"monitor": "val_loss", "min_delta": 0.001, "patience": 10, "verbose": True}
        callbacks.append(EarlyStopping(**options | (manager.get("early_stopping_callback_params") or {})))
    if manager.get("create_checkpoint_callback", True):
        params = dict(manager.get("checkpoint_callback_params") or {})
        name = manager.get("name") or "default"
        callbacks.append(AdapterCheckpoint(checkpoints_folder(config), name, params))
    return callbacks


def add_loggers(trainer: Trainer, config: DictConfig, start: Start) -> None:
    """Give a trainer the loggers of a job; a resumed one goes on with theirs where it stopped."""
    manager = plain_mapping(config.exp_manager)
    results = Path(manager["explicit_log_dir"])
    loggers: list[Logger] = []
    if manager.get("create_tensorboard_logger"):
        options = dict(manager.get("summary_writer_kwargs") or {})
        if any(results.glob("events.out.tfevents.*")):  # what a killed run logged beyond its checkpoint is hidden
            options = {"purge_step": start.step, "default_hp_metric": start.path is None} | options
        loggers.append(TensorBoardLogger(save_dir=str(results), name="", version="", **options))
    if manager.get("create_wandb_logger"):
        loggers.append(_wandb_logger(trainer, manager, results, start))
    trainer.loggers = loggers


def _wandb_logger(trainer: Trainer, manager: dict[str, Any], results: Path, start: Start) -> WandbLogger:
    options = dict(manager.get("wandb_logger_kwargs") or {})
    if not options.get("save_dir"):
        options["save_dir"] = str(results)
    known = finished_summary(results / WANDB_NAME) or {}
    if not options.get("id"):
        options["id"] = known.get("id") if start.path is not None and known.get("id") else secrets.token_hex(4)
    options.setdefault("resume", "allow")
    logger = WandbLogger(**options)
    if trainer.is_global_zero:
        write_json(results / WANDB_NAME, {"id": options["id"]})
        _start_wandb(logger)
    return logger


def _start_wandb(logger: WandbLogger) -> None:
    """Log in now: a mistake is told before training. Raises UserError."""
    try:
        _ = logger.experiment
    except Exception as error:  # wandb's own types, which are not imported unless it is used
        what = f"W&B does not start: {first_line(error)}"
        fix = "set WANDB_API_KEY, or exp_manager.wandb_logger_kwargs.mode=offline, or create_wandb_logger=False"
        raise UserError(Problem("exp_manager.create_wandb_logger", what, fix)) from error
