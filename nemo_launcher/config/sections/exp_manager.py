# SPDX-License-Identifier: Apache-2.0
"""`exp_manager` of adapter_learning and ia3_learning: folders, loggers, checkpoints, early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.fields import Hidden, LinesText, PathText, optional
from nemo_launcher.config.sections.common import Amount, Count, FromMinusOne, Size


@dataclass(frozen=True)
class WandbLogger:
    """`exp_manager.wandb_logger_kwargs`: the arguments of Lightning's WandbLogger."""

    project: str | None = None
    """The project that the run belongs to."""
    name: str | None = None
    """The run's name; null: one that Weights & Biases makes up."""
    entity: str | None = optional()
    """The user or team that owns the project."""
    group: str | None = optional()
    """The group that the run is shown in."""
    tags: list[str] | None = optional()
    """Labels of the run."""
    notes: LinesText | None = optional()
    """A description of the run."""
    id: str | None = optional()
    """The run's id; null: a new one, which a resumed training uses again."""
    mode: Literal["online", "offline", "disabled"] | None = optional()
    """Whether the run is sent as it goes, kept on the disk, or not recorded."""
    save_dir: PathText | None = optional()
    """The folder of the local files; null: `explicit_log_dir`."""
    resume: bool | Literal["allow", "must", "never", "auto"] | None = optional("allow")
    """How a run with this id is continued, as `wandb.init` takes it."""


@dataclass(frozen=True)
class CheckpointCallback:
    """`exp_manager.checkpoint_callback_params`: NeMo's names, most of them those of Lightning's ModelCheckpoint."""

    monitor: str | None = "val_loss"
    """The metric that ranks checkpoints; null: only the latest is kept."""
    save_top_k: FromMinusOne = 5
    """How many of the best checkpoints are kept; -1: all, 0: none."""
    mode: Literal["min", "max"] = "min"
    """Whether a low or a high value of the metric is better."""
    save_nemo_on_train_end: bool = False
    """Whether a copy of the adapter's archive is written beside the checkpoints at the end."""
    filename: str | None = None
    """The checkpoint's file name, in which Lightning fills in metrics such as `{step}`."""
    model_parallel_size: Count = 1
    """NeMo's copy of tensor_model_parallel_size * pipeline_model_parallel_size; not read."""
    save_best_model: bool = False
    """Whether the archive ends up with the best weights rather than the last ones."""
    save_last: bool = optional(True)
    """Whether the latest state is kept as well, for a training to resume from."""
    always_save_nemo: bool = optional(False)
    """Whether that copy is written with every checkpoint."""
    every_n_train_steps: Size | None = optional()
    """Optimizer steps between checkpoints; 0 or null: this trigger is off."""
    every_n_epochs: Size | None = optional()
    """Epochs between checkpoints; 0 or null: this trigger is off."""
    train_time_interval: str | None = optional()
    """Time between checkpoints, DD:HH:MM:SS; null: this trigger is off."""
    verbose: bool = optional(False)
    """Whether each checkpoint is reported."""


@dataclass(frozen=True)
class EarlyStopping:
    """`exp_manager.early_stopping_callback_params`: the arguments of Lightning's EarlyStopping."""

    monitor: str = "val_loss"
    """The metric that has to improve."""
    mode: Literal["min", "max"] = "min"
    """Whether a low or a high value of the metric is better."""
    min_delta: Amount = 0.001
    """The smallest change that counts as an improvement, in units of the metric."""
    patience: Size = 10
    """Validations without an improvement after which training stops."""
    verbose: bool = optional(True)
    """Whether each improvement is reported."""
    strict: bool = optional(True)
    """Whether a missing metric is an error."""
    check_finite: bool = optional(True)
    """Whether training stops when the metric is NaN or infinite."""
    stopping_threshold: float | None = optional()
    """Training stops once the metric is at least this good."""
    divergence_threshold: float | None = optional()
    """Training stops once the metric is worse than this."""
    check_on_train_epoch_end: bool | None = optional()
    """Whether the check runs at the end of a training epoch; null or False: after each validation."""


@dataclass(frozen=True)
class ExpManager:
    """`exp_manager`: NeMo's names."""

    explicit_log_dir: PathText
    """The folder of checkpoints, logs and figures."""
    checkpoint_callback_params: CheckpointCallback
    """Which checkpoints are kept."""
    exp_dir: PathText | None = None
    """NeMo's other way to name the folder; accepted as null only."""
    name: str | None = None
    """The experiment's name: the file name of the archive's copy, and of checkpoints without a `filename`."""
    version: str | None = optional()
    """NeMo's subfolder of `exp_dir`; accepted as null only."""
    create_wandb_logger: bool = False
    """Whether the training logs to Weights & Biases."""
    wandb_logger_kwargs: WandbLogger | None = None
    """The run at Weights & Biases."""
    create_tensorboard_logger: bool = optional(False)
    """Whether the training logs to TensorBoard."""
    summary_writer_kwargs: Annotated[dict[str, object], Hidden()] | None = optional()
    """Arguments of Lightning's TensorBoardLogger."""
    resume_if_exists: bool = True
    """Whether a training resumes from its latest checkpoint."""
    resume_ignore_no_checkpoint: bool = True
    """Whether a training starts from scratch where there is no checkpoint to resume from."""
    create_checkpoint_callback: bool = True
    """Whether checkpoints are written at all."""
    create_early_stopping_callback: bool = optional(False)
    """Whether training stops once a metric no longer improves."""
    early_stopping_callback_params: EarlyStopping | None = optional()
    """What counts as an improvement."""
    max_time_per_run: str | None = optional()
    """Time after which this run stops and saves, DD:HH:MM:SS; the training goes on at the next launch."""
    log_step_timing: bool = optional(False)
    """Whether the seconds of each step are logged."""
    log_tflops_per_sec_per_gpu: bool = optional(False)
    """NeMo's estimate of arithmetic throughput; not computed."""
