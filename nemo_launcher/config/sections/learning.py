# SPDX-License-Identifier: Apache-2.0
"""adapter_learning and ia3_learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nemo_launcher.config.constraints import Bounds, Length, Meant
from nemo_launcher.config.precision import Precision
from nemo_launcher.config.schema import OPTIONAL, Hidden, LinesText, PathText
from nemo_launcher.config.sections.common import (
    Accelerator,
    Amount,
    Count,
    FromMinusOne,
    Run,
    Share,
    Size,
)

Files = Annotated[list[PathText], Length(1, example=("/path/to/data.jsonl",))]


@dataclass
class LearningRun(Run):
    """adapter_learning.run, ia3_learning.run"""

    task_name: str = "squad"
    model_train_name: str = OPTIONAL
    convert_name: str = OPTIONAL
    convert_dir: PathText = OPTIONAL
    model_family: str = OPTIONAL  # filled in by the launcher, so that a base of another family is refused


@dataclass
class LearningTrainer:
    """Lightning's Trainer."""

    devices: Count
    num_nodes: Count
    accelerator: Accelerator
    precision: Precision
    max_epochs: Annotated[int, Bounds(minimum=-1, example=4)] | None = None
    max_steps: FromMinusOne | None = -1
    max_time: str | None = OPTIONAL
    logger: bool = False
    enable_checkpointing: bool = False
    use_distributed_sampler: bool = False
    replace_sampler_ddp: bool = OPTIONAL  # the older name of use_distributed_sampler
    log_every_n_steps: Count = 10
    val_check_interval: float | None = 1.0
    check_val_every_n_epoch: Count | None = OPTIONAL
    limit_train_batches: Amount | None = OPTIONAL
    limit_val_batches: Amount | None = OPTIONAL
    num_sanity_val_steps: FromMinusOne = OPTIONAL
    accumulate_grad_batches: int = 1
    gradient_clip_val: Amount | None = None
    benchmark: bool | None = OPTIONAL
    deterministic: bool | Literal["warn"] | None = OPTIONAL
    resume_from_checkpoint: PathText | None = None


@dataclass
class WandbLogger:
    """exp_manager.wandb_logger_kwargs"""

    project: str | None = None
    name: str | None = None
    entity: str | None = OPTIONAL
    group: str | None = OPTIONAL
    tags: list[str] | None = OPTIONAL
    notes: LinesText | None = OPTIONAL
    id: str | None = OPTIONAL
    mode: Literal["online", "offline", "disabled"] | None = OPTIONAL
    save_dir: PathText | None = OPTIONAL
    resume: bool | Literal["allow", "must", "never", "auto"] | None = OPTIONAL


@dataclass
class CheckpointCallback:
    """exp_manager.checkpoint_callback_params"""

    monitor: str | None = "val_loss"
    save_top_k: FromMinusOne = 5
    mode: Literal["min", "max"] = "min"
    save_nemo_on_train_end: bool = False
    filename: str | None = None
    model_parallel_size: Count = 1
    save_best_model: bool = False
    save_last: bool = OPTIONAL
    always_save_nemo: bool = OPTIONAL
    every_n_train_steps: Size | None = OPTIONAL
    every_n_epochs: Size | None = OPTIONAL
    train_time_interval: str | None = OPTIONAL
    verbose: bool = OPTIONAL


@dataclass
class EarlyStopping:
    """exp_manager.early_stopping_callback_params"""

    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    min_delta: Amount = 0.001
    patience: Size = 10
    verbose: bool = OPTIONAL
    strict: bool = OPTIONAL
    check_finite: bool = OPTIONAL
    stopping_threshold: float | None = OPTIONAL
    divergence_threshold: float | None = OPTIONAL
    check_on_train_epoch_end: bool | None = OPTIONAL


@dataclass
class ExpManager:
    """NeMo's exp_manager."""

    explicit_log_dir: PathText
    checkpoint_callback_params: CheckpointCallback
    exp_dir: PathText | None = None
    name: str | None = None
    version: str | None = OPTIONAL
    create_wandb_logger: bool = False
    wandb_logger_kwargs: WandbLogger | None = None
    create_tensorboard_logger: bool = OPTIONAL
    summary_writer_kwargs: Annotated[dict[str, Any], Hidden()] | None = OPTIONAL
    resume_if_exists: bool = True
    resume_ignore_no_checkpoint: bool = True
    create_checkpoint_callback: bool = True
    create_early_stopping_callback: bool = OPTIONAL
    early_stopping_callback_params: EarlyStopping | None = OPTIONAL
    max_time_per_run: str | None = OPTIONAL
    log_step_timing: bool = OPTIONAL
    log_tflops_per_sec_per_gpu: bool = OPTIONAL


@dataclass
class TaskTemplate:
    """model.task_templates"""

    taskname: str
    prompt_template: LinesText
    total_virtual_tokens: Size = 0
    virtual_token_splits: list[int] | None = None
    truncate_field: str | None = None
    answer_only_loss: bool = True
    answer_field: str | None = None


@dataclass
class AdapterTuning:
    """model.adapter_tuning"""

    type: Literal["parallel_adapter", "linear_adapter"]
    adapter_dim: Count
    adapter_dropout: Annotated[float, Bounds(minimum=0, below=1, example=0.1)] = 0.0
    norm_position: Literal["pre", "post"] | None = "pre"
    column_init_method: Literal["xavier", "zero", "normal"] = "xavier"
    row_init_method: Literal["zero", "xavier", "normal"] = "zero"
    norm_type: Literal["mixedfusedlayernorm", "layernorm"] = "mixedfusedlayernorm"


@dataclass
class LearningData:
    """model.data"""

    train_ds: Files
    validation_ds: Files
    add_eos: bool = True
    add_bos: bool = OPTIONAL
    max_seq_length: Count | None = OPTIONAL
    add_sentinel_to_input: bool = OPTIONAL  # T5
    add_eos_to_decoder_output: bool = OPTIONAL  # T5
    decoder_starts_with_pad: bool = OPTIONAL  # T5
    shuffle: bool = True
    num_workers: Size = 4
    pin_memory: bool = True
    max_dropped_share: Share = 0.0
    share_prefix: bool = True
    pack: bool = True
    cache_dir: PathText | Literal[False] | None = None


# What nemo_toolkit 3.0 registers, and NeMo's names for Apex's fused kernels.
OptimizerName = Literal[
    "fused_adam", "distributed_fused_adam", "adam", "adamw", "sgd", "adadelta", "adamax", "adagrad", "rmsprop", "rprop",
    "novograd", "adafactor", "adan",
]  # fmt: skip
ScheduleName = Literal[
    "CosineAnnealing", "WarmupAnnealing", "WarmupPolicy", "WarmupHoldPolicy", "WarmupHoldAnnealLinear",
    "WarmupHoldAnnealOneMinusSquareRoot", "SquareAnnealing", "SquareRootAnnealing", "InverseSquareRootAnnealing",
    "T5InverseSquareRootAnnealing", "NoamAnnealing", "NoamHoldAnnealing", "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing", "CyclicLR", "ExponentialLR", "ReduceLROnPlateau", "StepLR",
]  # fmt: skip

_SCHEDULE_WORDS = (
    *((word, "CosineAnnealing") for word in ("cosine", "cosine_annealing", "cosineannealinglr", "cosine_with_warmup")),
    *((word, "WarmupPolicy") for word in ("constant", "constant_with_warmup", "none", "warmup")),
    *((word, "PolynomialDecayAnnealing") for word in ("linear", "polynomial", "linear_with_warmup")),
    *((word, "InverseSquareRootAnnealing") for word in ("inverse_sqrt", "rsqrt", "inverse_square_root")),
)


@dataclass
class Schedule:
    """model.optim.sched"""

    name: Annotated[ScheduleName, Meant(_SCHEDULE_WORDS)]
    warmup_steps: Size | None = None
    warmup_ratio: Share | None = OPTIONAL
    constant_steps: Size | None = 0
    max_steps: FromMinusOne | None = OPTIONAL
    min_lr: Amount = 0.0
    monitor: str | None = "val_loss"
    reduce_on_plateau: bool = False


Beta = Annotated[float, Bounds(minimum=0, below=1, example=0.9)]
Betas = Annotated[list[Beta], Length(2, 2, (0.9, 0.98))]


@dataclass
class Optimizer:
    """model.optim"""

    name: OptimizerName
    lr: Annotated[float, Bounds(above=0, example=1e-4)]
    weight_decay: Amount | None = 0.0
    betas: Betas | None = OPTIONAL
    eps: Annotated[float, Bounds(above=0, example=1e-8)] | None = OPTIONAL
    sched: Schedule | None = None


@dataclass
class Ia3Model:
    """ia3_learning.model"""

    nemo_path: PathText
    global_batch_size: Count
    micro_batch_size: Count
    language_model_path: PathText
    new_tasks: list[str]
    task_templates: list[TaskTemplate]
    data: LearningData
    optim: Optimizer
    seed: int = 1234
    virtual_prompt_style: str = "no-prompts"
    encoder_seq_length: Count = 2048
    gradient_as_bucket_view: bool = False
    tensor_model_parallel_size: Count = 1
    pipeline_model_parallel_size: Count = 1
    pipeline_model_parallel_split_rank: Size | None = OPTIONAL
    sequence_parallel: bool = False
    model_parallel_size: Count | None = OPTIONAL
    activations_checkpoint_granularity: Literal["full", "selective"] | None = None
    activations_checkpoint_method: Literal["uniform", "block"] | None = None
    activations_checkpoint_num_layers: Count | None = None
    attention_backend: Literal["auto", "sdpa", "flex"] = "auto"
    torch_compile: bool = False
    restore_path: PathText | None = None
    nemo_compat: bool = False
    decoder_seq_length: Count | None = OPTIONAL  # T5
    existing_tasks: list[str] | None = None


@dataclass(kw_only=True)
class AdapterModel(Ia3Model):
    """adapter_learning.model"""

    adapter_tuning: AdapterTuning


@dataclass
class Ia3Learning:
    """Trains IA3."""

    run: LearningRun
    trainer: LearningTrainer
    exp_manager: ExpManager
    model: Ia3Model


@dataclass
class AdapterLearning:
    """Trains adapters."""

    run: LearningRun
    trainer: LearningTrainer
    exp_manager: ExpManager
    model: AdapterModel
