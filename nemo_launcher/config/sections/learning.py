# SPDX-License-Identifier: Apache-2.0
"""The keys that adapter_learning and ia3_learning share; the others are in adapters/sections.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Bounds, Length
from nemo_launcher.config.fields import LinesText, PathText, omitted, optional
from nemo_launcher.config.precision import Precision
from nemo_launcher.config.sections.common import Accelerator, Amount, Count, FromMinusOne, Kernels, Run, Share, Size
from nemo_launcher.config.sections.exp_manager import ExpManager
from nemo_launcher.config.sections.optimizer import Optimizer
from nemo_launcher.config.traversal import Traversal

Files = Annotated[list[PathText], Length(1, example=("/path/to/data.jsonl",))]

LEAST_SIMILARITY = 0.1
"""The smallest similarity of nearly equal samples."""


@dataclass(frozen=True)
class LearningRun(Run):
    """`adapter_learning.run` and `ia3_learning.run`."""

    task_name: str = "squad"
    """The task; part of the job's name and folder."""
    model_train_name: str = optional()
    """The base model's name, used in folder names below `base_results_dir`."""
    convert_name: str = optional()
    """The name of the conversion's folder."""
    convert_dir: PathText = optional()
    """The folder in which the conversion wrote the base model."""
    model_family: str | None = optional()
    """Set by the launcher, so that the job refuses a base model of another family."""
    automatic: list[str] | None = optional()
    """Set by the launcher: the keys that said `auto`, whose numbers a resumed training keeps."""
    hub_data: dict[str, str] | None = optional()
    """Set by the launcher: the `hf:` name, with its commit, of each data file that was fetched from the hub."""


@dataclass(frozen=True)
class LearningTrainer:
    """`trainer`: the arguments of Lightning's Trainer."""

    devices: Count
    """Processes on each node, one for each GPU."""
    num_nodes: Count
    """Number of nodes."""
    accelerator: Accelerator
    """The device type that runs the model."""
    precision: Precision
    """The type of the frozen base model's weights and activations; adapters train in fp32."""
    tf32: bool = omitted(False)
    """Whether products in fp32 on a GPU may round their factors to TF32, which is several times faster.

    Not a NeMo key.
    """
    max_epochs: Annotated[int, Bounds(minimum=-1, example=4)] | None = None
    """Epochs after which training ends; null or -1 to use only `max_steps`."""
    max_steps: FromMinusOne | None = -1
    """Optimizer steps after which training ends; null or -1 to use only `max_epochs`."""
    max_time: str | None = optional()
    """Wall-clock time after which training ends, DD:HH:MM:SS."""
    logger: bool = False
    """Lightning's own logger; accepted as False only."""
    enable_checkpointing: bool = False
    """Lightning's own checkpoints; accepted as False only."""
    use_distributed_sampler: bool = False
    """Lightning's own sampler; accepted as False only."""
    replace_sampler_ddp: bool = optional()
    """The older name of `use_distributed_sampler`."""
    log_every_n_steps: Count = 10
    """Optimizer steps between two entries of the loggers."""
    val_check_interval: float | None = 1.0
    """When to validate: a fraction of an epoch, or a number of optimizer steps."""
    check_val_every_n_epoch: Count | None = optional(1)
    """Epochs between validations; null to count `val_check_interval` in steps across epochs."""
    limit_train_batches: Amount | None = optional()
    """Batches per training epoch, as a number or a fraction up to 1.0."""
    limit_val_batches: Amount | None = optional()
    """Batches per validation, as a number or a fraction up to 1.0."""
    num_sanity_val_steps: FromMinusOne | None = optional()
    """Batches validated before the first step; -1 for all."""
    accumulate_grad_batches: int = 1
    """Accepted as 1 only: micro_batch_size and global_batch_size set the accumulation."""
    gradient_clip_val: Amount | None = None
    """The maximum gradient norm; null or 0 for no clipping."""
    benchmark: bool | None = optional()
    """Whether cuDNN times its kernels and picks the fastest."""
    deterministic: bool | Literal["warn"] | None = optional()
    """Whether torch uses only deterministic kernels; `warn` only warns if there is none."""
    resume_from_checkpoint: PathText | None = None
    """The checkpoint to resume from; null for the latest in the results folder."""


@dataclass(frozen=True)
class TaskTemplate:
    """An entry of `model.task_templates`: how a record of a task becomes a prompt. NeMo's names."""

    taskname: str
    """The records' `taskname`."""
    prompt_template: LinesText = ""
    """The prompt with the records' fields in braces, the answer's field last; empty for a chat."""
    template_format: Literal["fields", "jinja", "chat"] = optional("fields")
    """How the prompt is made: fields in braces, a Jinja template, or the base's own chat template.

    Not a NeMo key.
    """
    total_virtual_tokens: Size = 0
    """Number of virtual tokens in prompt learning; 0, as adapters have none."""
    virtual_token_splits: list[int] | None = None
    """The parts of the virtual tokens; empty or null."""
    truncate_field: str | None = None
    """The field that is truncated when a sample is too long; null drops the sample."""
    answer_only_loss: bool = True
    """Whether the loss covers only the answer rather than the whole prompt."""
    answer_field: str | None = None
    """The field that holds the answer."""
    choices_field: str | None = omitted(None)
    """The field that holds the list of a record's possible answers. Not a NeMo key."""
    choices: list[str] | None = omitted(None)
    """The possible answers of every record, if records do not list them. Not a NeMo key."""
    no_answer: str | None = omitted(None)
    """The text that stands for the answer of a question without one, such as `unanswerable`. Not a NeMo key."""


@dataclass(frozen=True)
class ChoiceLoss:
    """`model.loss`: T-Few's losses over the answer choices of a record, added to the usual loss (arXiv 2205.05638)."""

    unlikelihood: bool = omitted(False)
    """Whether the tokens of wrong choices are trained to be unlikely."""
    length_norm: bool = omitted(False)
    """Whether the right choice is trained to have the largest mean log-probability of a token."""


@dataclass(frozen=True)
class Mixture:
    """`model.data.mixture`: how often each task occurs in an epoch, which has as many samples as the data."""

    weights: dict[str, Amount] | None = optional()
    """The share of each task by `taskname`, relative to the others; null for shares by their numbers of samples."""
    temperature: Annotated[float, Bounds(minimum=1)] = optional(1.0)
    """Above 1 raises the shares of small tasks: shares are proportional to samples ** (1 / temperature)."""
    max_per_task: Count | None = optional()
    """The number of samples above which a larger task has no larger share; null for no limit."""


@dataclass(frozen=True)
class LearningData:
    """`model.data`, with NeMo's keys down to `pin_memory`."""

    train_ds: Files
    """Data files to train on: JSON Lines, JSON, CSV, TSV, Parquet, Arrow, folders saved by `datasets`, or `hf:` names.

    `"hf:squad?split=train[:1%]"` is fetched from the Hugging Face Hub at launch.
    """
    validation_ds: Files
    """Data files to validate on."""
    test_ds: list[PathText] | None = omitted(None)
    """Data files to evaluate on, which become `evaluation.data_paths` unless you set those; null for none."""
    fields: dict[str, str] | None = optional()
    """The columns or keys of fields that the data files name otherwise, as in {context: passage, answer: answers.text}.

    Not a NeMo key.
    """
    add_eos: bool = True
    """Whether the end-of-text token follows the answer."""
    add_bos: bool = optional(False)
    """Whether the beginning-of-text token precedes the prompt."""
    max_seq_length: Count | None = optional()
    """Maximum tokens of a sample; null for `encoder_seq_length`."""
    add_sentinel_to_input: bool = optional(True)
    """T5 only: whether the encoder's input ends with a sentinel token."""
    add_eos_to_decoder_output: bool = optional(True)
    """T5 only: whether the decoder's target ends with the end-of-text token."""
    decoder_starts_with_pad: bool = optional(False)
    """T5 only: whether the decoder's input starts with the padding token."""
    shuffle: bool = True
    """Whether training samples are reshuffled in each epoch."""
    num_workers: Size = 4
    """Processes that prepare batches."""
    pin_memory: bool = True
    """Whether batches are put in page-locked memory before they are copied to a GPU."""
    mixture: Mixture | None = optional()
    """The shares of several tasks in an epoch; null uses every sample once. Not a NeMo key."""
    max_dropped_share: Share = 0.0
    """The maximum share of samples dropped as too long; more is an error."""
    near_duplicates: Annotated[float, Bounds(minimum=LEAST_SIMILARITY, maximum=1, example=0.9)] | None = omitted(None)
    """The similarity of samples that the job tells as nearly equal, as a share of their runs of tokens; null for none.

    Not a NeMo key.
    """
    share_prefix: bool = True
    """Whether shared prefixes of prompts are computed only once, with the same result."""
    pack: bool = True
    """Whether samples with a shared prefix stay in one forward pass, even beyond `micro_batch_size`."""
    layout: Literal["auto", "fixed"] = optional("auto")
    """How rows are cut: `auto`, by measured costs on a CPU and free memory of a GPU; `fixed`, the same everywhere."""
    traversal: Traversal = optional("auto")
    """How samples with a shared prefix are computed: `breadth`, all branches at once, or `depth`, one after another.

    Not a NeMo key.
    """
    cache_dir: PathText | Literal[False] | None = None
    """The folder for cached tokenised data; null for beside the data, False for no cache."""
    cache_hidden: bool = optional(False)
    """Whether the hidden states that enter the first layer with adapters are computed once, to a file in that folder.

    Not a NeMo key.
    """


@dataclass(frozen=True)
class Ia3Model:
    """The keys that `adapter_learning.model` and `ia3_learning.model` share, with NeMo's names."""

    nemo_path: PathText
    """The archive of the trained adapter."""
    global_batch_size: Count
    """Samples per optimizer step, over all ranks."""
    micro_batch_size: Count
    """Samples per forward pass on one rank; with `data.layout=auto`, rows on a GPU are usually longer."""
    language_model_path: PathText
    """The archive of the frozen base model."""
    new_tasks: list[str]
    """The tasks to train on, by `taskname`."""
    task_templates: list[TaskTemplate]
    """How records become prompts; records with `messages`, or `prompt` and `completion`, need no entry."""
    data: LearningData
    """The data files and how they are read."""
    optim: Optimizer
    """The optimizer."""
    seed: int = 1234
    """Seed of initial weights, shuffling and dropout."""
    virtual_prompt_style: str = "no-prompts"
    """NeMo's kind of prompt learning; accepted as `no-prompts` only."""
    encoder_seq_length: Count = 2048
    """Maximum tokens of a sample; for T5, of the encoder's input."""
    gradient_as_bucket_view: bool = False
    """An option of torch's DistributedDataParallel; not read."""
    tensor_model_parallel_size: Count = 1
    """Number of ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Number of pipeline stages."""
    pipeline_model_parallel_split_rank: Size | None = optional()
    """T5 only: the first pipeline stage of the decoder."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks also split the tokens between the layers, which saves memory; ignored with one."""
    model_parallel_size: Count | None = optional()
    """NeMo's copy of tensor_model_parallel_size * pipeline_model_parallel_size; not read."""
    activations_checkpoint_granularity: Literal["full", "selective"] | None = None
    """`full` recomputes layers in the backward pass; null recomputes nothing."""
    activations_checkpoint_method: Literal["uniform", "block"] | None = None
    """`uniform` recomputes all layers, `block` the first `activations_checkpoint_num_layers`."""
    activations_checkpoint_num_layers: Count | None = None
    """Layers of a pipeline stage that are recomputed under `block`."""
    attention_backend: Literal["auto", "sdpa", "flex"] = "auto"
    """How attention is computed on a GPU; `auto` uses FlexAttention if it works. Not a NeMo key."""
    fused_kernels: Kernels = "auto"
    """How a GPU fuses norms, rotary positions and SwiGLU; `auto` uses liger-kernel if it works. Not a NeMo key."""
    torch_compile: bool = False
    """Whether norms and activations are compiled. Not a NeMo key."""
    restore_path: PathText | None = None
    """The adapter archive to start from; null for initial weights."""
    nemo_compat: bool = False
    """Whether to use NeMo's arithmetic where this project's is more exact. Not a NeMo key."""
    decoder_seq_length: Count | None = optional()
    """T5 only: maximum tokens of the decoder, in training and in generation."""
    loss: ChoiceLoss | None = omitted(None)
    """Losses besides the cross-entropy of the right answer; needs answer choices in the templates. Not a NeMo key."""
    existing_tasks: list[str] | None = None
    """Tasks that `restore_path` was trained on, recorded in the archive with `new_tasks`."""

    @property
    def splits_tokens(self) -> bool:
        """Whether ranks split the tokens between the layers; as in Megatron, a single one does not."""
        return self.sequence_parallel and self.tensor_model_parallel_size > 1


@dataclass(frozen=True)
class Learning:
    """The keys that `adapter_learning` and `ia3_learning` share."""

    run: LearningRun
    """The job."""
    trainer: LearningTrainer
    """Devices, precision and length of the training."""
    exp_manager: ExpManager
    """Checkpoints and loggers."""
    model: Ia3Model
    """The base model, data and optimizer."""
