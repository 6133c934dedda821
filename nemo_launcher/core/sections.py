"""The keys of every configuration section, and what each may hold; values and defaults are in conf/.

A field without a default has to be in the configuration, one with a default is filled in, an optional() one may stay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nemo_launcher.core.schema import AtLeast, optional

Count = Annotated[int, AtLeast(1)]
Size = Annotated[int, AtLeast(0)]
Amount = Annotated[float, AtLeast(0)]
Scalar = str | int | float | bool
Precision = Literal[16, 32, "16", "32", "bf16", "16-mixed", "bf16-mixed", "32-true"]


@dataclass
class NumaMapping:
    """Binding of ranks to CPU memory nodes."""

    enable: bool = False
    mode: str = optional()
    scope: str = optional()
    cores: str = optional()
    balanced: bool = optional()
    min_cores: Count = optional()
    max_cores: Count = optional()


@dataclass
class Cluster:
    """Slurm: each key is an sbatch option, with _ for -."""

    partition: str | None = None
    account: str | None = None
    exclusive: bool | Literal["user", "mcs"] | None = None
    gpus_per_task: Count | None = None
    gpus_per_node: Count | str | None = None
    mem: Size | str | None = None
    overcommit: bool | None = None
    job_name_prefix: str = ""
    srun_args: list[str] | None = None
    qos: str | None = optional()
    constraint: str | None = optional()
    reservation: str | None = optional()
    nodelist: str | None = optional()
    exclude: str | None = optional()
    gres: str | None = optional()
    cpus_per_task: Count | None = optional()
    comment: str | None = optional()
    mail_type: str | None = optional()
    mail_user: str | None = optional()


@dataclass
class TopLevel:
    """conf/config.yaml without the groups."""

    launcher_scripts_path: str
    data_dir: str
    base_results_dir: str
    container: str | None = None
    container_mounts: list[str | None] | None = None
    wandb_api_key_file: str | None = None
    wandb_api_bcp_secret_key: str | None = None
    bcp_no_redirect: bool = True
    env_vars: dict[str, Scalar | None] | None = None
    numa_mapping: NumaMapping | None = None
    debug: bool = False


@dataclass
class Run:
    """What every stage's `run` section has."""

    name: str
    results_dir: str
    time_limit: str | None = None  # HH:MM:SS or D-HH:MM:SS
    dependency: str | None = None  # of the first job in a chain, as sbatch takes it


@dataclass
class DataPreparationRun(Run):
    """data_preparation.run"""

    task_name: Literal["squad"] = "squad"


@dataclass
class DataPreparation:
    """Prepares a task's JSONL files."""

    run: DataPreparationRun
    source_dir: str
    output_dir: str
    download: bool = True


@dataclass
class ConversionRun(Run):
    """conversion_hf2nemo.run"""

    model_train_name: str = optional()


@dataclass
class ConversionTrainer:
    """conversion_hf2nemo.trainer"""

    devices: Count = 1
    num_nodes: Count = 1


@dataclass
class ConversionModel:
    """conversion_hf2nemo.model"""

    hf_model_path: str
    nemo_path: str
    precision: Literal[16, 32, "16", "32", "bf16"] | None = None


@dataclass
class Conversion:
    """Makes a .nemo archive of a Hugging Face model."""

    run: ConversionRun
    model: ConversionModel
    trainer: ConversionTrainer | None = None


@dataclass
class LearningRun(Run):
    """adapter_learning.run, ia3_learning.run"""

    task_name: str = "squad"
    model_train_name: str = optional()
    convert_name: str = optional()
    convert_dir: str = optional()


@dataclass
class LearningTrainer:
    """Lightning's Trainer."""

    devices: Count
    num_nodes: Count
    accelerator: Literal["gpu", "cuda", "cpu", "auto"]
    precision: Precision
    max_epochs: Annotated[int, AtLeast(-1)] | None = None
    max_steps: Annotated[int, AtLeast(-1)] | None = -1
    max_time: str | None = optional()
    logger: bool = False
    enable_checkpointing: bool = False
    use_distributed_sampler: bool = False
    replace_sampler_ddp: bool = optional()  # the older name of use_distributed_sampler
    log_every_n_steps: Count = 10
    val_check_interval: float | None = 1.0
    check_val_every_n_epoch: Count | None = optional()
    limit_train_batches: float | None = optional()
    limit_val_batches: float | None = optional()
    num_sanity_val_steps: Annotated[int, AtLeast(-1)] = optional()
    accumulate_grad_batches: int = 1
    gradient_clip_val: Amount | None = None
    benchmark: bool | None = optional()
    deterministic: bool | Literal["warn"] | None = optional()
    enable_progress_bar: bool = optional()
    enable_model_summary: bool = optional()
    resume_from_checkpoint: str | None = None


@dataclass
class WandbLogger:
    """exp_manager.wandb_logger_kwargs"""

    project: str | None = None
    name: str | None = None
    entity: str | None = optional()
    group: str | None = optional()
    tags: list[str] | None = optional()
    notes: str | None = optional()
    id: str | None = optional()
    mode: str | None = optional()
    save_dir: str | None = optional()
    resume: bool | str | None = optional()


@dataclass
class CheckpointCallback:
    """exp_manager.checkpoint_callback_params"""

    monitor: str | None = "val_loss"
    save_top_k: Annotated[int, AtLeast(-1)] = 5
    mode: Literal["min", "max"] = "min"
    save_nemo_on_train_end: bool = False
    filename: str | None = None
    model_parallel_size: Count = 1
    save_best_model: bool = False
    save_last: bool = optional()
    always_save_nemo: bool = optional()
    every_n_train_steps: Size | None = optional()
    every_n_epochs: Size | None = optional()
    train_time_interval: str | None = optional()
    verbose: bool = optional()


@dataclass
class ExpManager:
    """NeMo's exp_manager."""

    explicit_log_dir: str
    checkpoint_callback_params: CheckpointCallback
    exp_dir: str | None = None
    name: str | None = None
    version: str | None = optional()
    create_wandb_logger: bool = False
    wandb_logger_kwargs: WandbLogger | None = None
    create_tensorboard_logger: bool = optional()
    summary_writer_kwargs: dict[str, Any] | None = optional()
    resume_if_exists: bool = True
    resume_ignore_no_checkpoint: bool = True
    create_checkpoint_callback: bool = True
    log_step_timing: bool = optional()


@dataclass
class TaskTemplate:
    """model.task_templates"""

    taskname: str
    prompt_template: str
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
    adapter_dropout: Amount = 0.0
    norm_position: Literal["pre", "post"] | None = "pre"
    column_init_method: Literal["xavier", "zero", "normal"] = "xavier"
    row_init_method: Literal["zero", "xavier", "normal"] = "zero"
    norm_type: Literal["mixedfusedlayernorm", "layernorm"] = "mixedfusedlayernorm"


@dataclass
class LearningData:
    """model.data"""

    train_ds: list[str]
    validation_ds: list[str]
    add_eos: bool = True
    add_bos: bool = optional()
    shuffle: bool = True
    num_workers: Size = 4
    pin_memory: bool = True
    max_dropped_share: Amount = 0.0
    share_prefix: bool = True
    pack: bool = True


@dataclass
class Schedule:
    """model.optim.sched"""

    name: str
    warmup_steps: Size | None = None
    warmup_ratio: Amount | None = optional()
    constant_steps: Size | None = 0
    max_steps: Annotated[int, AtLeast(-1)] | None = optional()
    min_lr: Amount = 0.0
    monitor: str | None = "val_loss"
    reduce_on_plateau: bool = False


@dataclass
class Optimizer:
    """model.optim"""

    name: str
    lr: Amount
    weight_decay: Amount = 0.0
    betas: list[float] = optional()
    eps: Amount = optional()
    sched: Schedule | None = None


@dataclass
class Ia3Model:
    """ia3_learning.model"""

    nemo_path: str
    global_batch_size: Count
    micro_batch_size: Count
    language_model_path: str
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
    pipeline_model_parallel_split_rank: Size | None = optional()
    model_parallel_size: Count | None = optional()
    restore_path: str | None = None
    nemo_compat: bool = False
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


@dataclass
class EvaluationRun(LearningRun):
    """evaluation.run"""

    adapter_learning_dir: str = optional()
    ia3_learning_dir: str = optional()


@dataclass
class EvaluationTrainer:
    """evaluation.trainer"""

    devices: Count
    num_nodes: Count
    accelerator: Literal["gpu", "cuda", "cpu", "auto"] = "gpu"
    precision: Precision = "bf16"
    logger: bool = optional()


@dataclass
class Inference:
    """How answers are generated."""

    greedy: bool = True
    top_k: Size = 0
    top_p: Amount = 0.9
    temperature: Amount = 1.0
    add_BOS: bool = True
    tokens_to_generate: Count = 30
    min_tokens_to_generate: Size = 0
    repetition_penalty: Amount = 1.2
    batch_size: Count = 20
    all_probs: bool = optional()
    compute_logprob: bool = optional()


@dataclass
class Evaluation:
    """Answers a test set and scores the answers."""

    run: EvaluationRun
    trainer: EvaluationTrainer
    inference: Inference
    adapter_model_file: str
    pred_file_path: str
    ground_truth_file_path: str
    data_paths: list[str]
    language_model_path: str = optional()
    gpt_model_file: str = optional()  # the older name of language_model_path
    tensor_model_parallel_size: Count = 1
    pipeline_model_parallel_size: Count = 1
    pipeline_model_parallel_split_rank: Size | None = optional()
    split_string: str = "answer:"
    compare_with_base: bool = False
    training_summary_path: str | None = None
    summary_path: str | None = None
