# SPDX-License-Identifier: Apache-2.0
"""The sections data_preparation, conversion_hf2nemo and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Bounds, Length
from nemo_launcher.config.datasets import DatasetName
from nemo_launcher.config.fields import PathOrHubText, PathText, omitted, optional
from nemo_launcher.config.precision import Precision, StoredPrecision
from nemo_launcher.config.sections.common import (
    Accelerator,
    Count,
    Kernels,
    Positive,
    Run,
    Size,
)
from nemo_launcher.config.sections.learning import Files, LearningRun


@dataclass(frozen=True)
class DataPreparationRun(Run):
    """`data_preparation.run`."""

    task_name: DatasetName = "squad"
    """The dataset to prepare."""


@dataclass(frozen=True)
class DataPreparation:
    """`data_preparation`: prepare a task's JSON Lines files."""

    run: DataPreparationRun
    """The job."""
    source_dir: PathText
    """The folder with the task's original files."""
    output_dir: PathText
    """The folder for the prepared files."""
    download: bool = True
    """Whether missing original files are downloaded."""


@dataclass(frozen=True)
class ConversionRun(Run):
    """`conversion_hf2nemo.run`."""

    model_train_name: str = optional()
    """The base model's name, used in folder names below `base_results_dir`."""


@dataclass(frozen=True)
class ConversionTrainer:
    """`conversion_hf2nemo.trainer`: a conversion has a single process."""

    devices: Count = 1
    """Processes on each node; must be 1."""
    num_nodes: Count = 1
    """Number of nodes; must be 1."""


@dataclass(frozen=True)
class ConversionModel:
    """`conversion_hf2nemo.model`."""

    hf_model_path: PathOrHubText
    """A Hugging Face folder, a GGUF file, or a model of the Hugging Face Hub: `OWNER/NAME`, or
    `hf:NAME?revision=R&file=F.gguf`. The launch fetches a model of the hub into the hub's cache."""
    nemo_path: PathText
    """The `.nemo` archive to write."""
    precision: StoredPrecision | None = None
    """The type of the stored weights; null for that of the source."""
    hf_language_model: bool = False
    """Whether the model sees images too (Gemma 3, Mistral 3) and its language model alone is converted."""


@dataclass(frozen=True)
class Conversion:
    """`conversion_hf2nemo`: convert a Hugging Face model into a `.nemo` archive."""

    run: ConversionRun
    """The job."""
    model: ConversionModel
    """Source and target of the conversion."""
    trainer: ConversionTrainer | None = None
    """Processes and nodes."""


@dataclass(frozen=True)
class EvaluationRun(LearningRun):
    """`evaluation.run`."""

    adapter_learning_dir: PathText = optional()
    """The job folder of the adapter's training."""
    ia3_learning_dir: PathText = optional()
    """The job folder of the IA3 training."""
    method: Literal["adapter", "ia3"] | None = optional()
    """Set by the launcher, so that the job refuses an archive of another method."""


@dataclass(frozen=True)
class EvaluationTrainer:
    """`evaluation.trainer`, with the keys of Lightning's Trainer."""

    devices: Count
    """Processes on each node, one for each GPU."""
    num_nodes: Count
    """Number of nodes."""
    accelerator: Accelerator = "gpu"
    """The device type that runs the model."""
    precision: Precision = "bf16"
    """The type of weights and activations."""
    tf32: bool = omitted(False)
    """Whether products in fp32 on a GPU may round their factors to TF32. Not a NeMo key."""
    logger: bool = optional()
    """Not read: an evaluation logs nothing."""


@dataclass(frozen=True)
class Inference:
    """`evaluation.inference`: how answers are generated. NeMo's names."""

    greedy: bool = True
    """Whether decoding is greedy; False samples tokens."""
    top_k: Size = 0
    """Number of most likely tokens to sample from; 0 for all."""
    top_p: Annotated[float, Bounds(above=0, maximum=1, example=0.9)] = 0.9
    """The total probability of the most likely tokens to sample from."""
    temperature: Positive = 1.0
    """Divides the logits before sampling."""
    add_BOS: bool | None = None
    """Whether prompts start with the beginning-of-text token; null for as in training."""
    tokens_to_generate: Count = 30
    """Maximum new tokens of an answer."""
    min_tokens_to_generate: Size = 0
    """Minimum new tokens before an answer may end."""
    repetition_penalty: Positive = 1.2
    """Divides positive and multiplies negative logits of tokens that have occurred; not with greedy decoding."""
    batch_size: Count = 20
    """Number of prompts that are processed at a time."""
    all_probs: bool = optional()
    """Not read: answers are written without probabilities."""
    compute_logprob: bool = optional()
    """Not read: answers are written without probabilities."""


@dataclass(frozen=True)
class Evaluation:
    """`evaluation`: generate answers to a test set and score them."""

    run: EvaluationRun
    """The job."""
    trainer: EvaluationTrainer
    """Devices and precision."""
    inference: Inference
    """How answers are generated."""
    language_model_path: PathText
    """The archive of the base model."""
    adapter_model_file: PathText
    """The archive of the adapter."""
    pred_file_path: PathText
    """The file of predictions to write."""
    ground_truth_file_path: PathText | None
    """The file with SQuAD's answers; null if the answers are in `data_paths` or absent."""
    data_paths: Files
    """Data files with the prompts, of the same forms as a training's."""
    fields: dict[str, str] | None = optional()
    """The columns or keys of fields that the data files name otherwise; null for the training's `data.fields`."""
    metrics: Annotated[list[str], Length(1, example=("accuracy", "macro_f1"))] | None = None
    """The names of the metrics; null for those that suit each task."""
    gpt_model_file: PathText = optional()
    """The older name of `language_model_path`."""
    tensor_model_parallel_size: Count = 1
    """Number of ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Number of pipeline stages."""
    pipeline_model_parallel_split_rank: Size | None = optional()
    """T5 only: the first pipeline stage of the decoder."""
    model_parallel_size: Count | None = optional()
    """NeMo's copy of tensor_model_parallel_size * pipeline_model_parallel_size; not read."""
    split_string: str = "answer:"
    """NeMo's marker of the start of an answer; not read."""
    compare_with_base: bool = False
    """Whether the base model also answers without the adapter."""
    nemo_compat: bool = False
    """Whether to use NeMo's arithmetic where this project's is more exact."""
    fused_kernels: Kernels = omitted("auto")
    """How a GPU fuses norms, rotary positions and SwiGLU; `auto` uses liger-kernel if it works. Not a NeMo key."""
    training_summary_path: PathText | None = None
    """The training's summary, whose figures the report repeats; null for none."""
    summary_path: PathText | None = None
    """The JSON file of all figures to write; null for none."""
    report_path: PathText | None = optional()
    """The HTML report to write; null for `report.html` beside the predictions."""
    report_examples: Size = optional(100)
    """Maximum number of questions that the report quotes with their answers; 0 for none."""
