# SPDX-License-Identifier: Apache-2.0
"""data_preparation, conversion_hf2nemo and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Bounds
from nemo_launcher.config.datasets import DatasetName
from nemo_launcher.config.fields import PathText, optional
from nemo_launcher.config.precision import Precision, StoredPrecision
from nemo_launcher.config.sections.common import (
    Accelerator,
    Count,
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
    """`data_preparation`: prepares a task's JSON Lines files."""

    run: DataPreparationRun
    """The job."""
    source_dir: PathText
    """The folder with the task's original files."""
    output_dir: PathText
    """The folder for the prepared files."""
    download: bool = True
    """Whether original files that are missing are downloaded."""


@dataclass(frozen=True)
class ConversionRun(Run):
    """`conversion_hf2nemo.run`."""

    model_train_name: str = optional()
    """The base model's name, which folders below `base_results_dir` have."""


@dataclass(frozen=True)
class ConversionTrainer:
    """`conversion_hf2nemo.trainer`: a conversion is one process."""

    devices: Count = 1
    """Processes on each node: 1."""
    num_nodes: Count = 1
    """Nodes: 1."""


@dataclass(frozen=True)
class ConversionModel:
    """`conversion_hf2nemo.model`."""

    hf_model_path: PathText
    """A Hugging Face folder or a GGUF file."""
    nemo_path: PathText
    """The `.nemo` archive to write."""
    precision: StoredPrecision | None = None
    """The type of the stored weights; null: that of the source."""


@dataclass(frozen=True)
class Conversion:
    """`conversion_hf2nemo`: makes a `.nemo` archive of a Hugging Face model."""

    run: ConversionRun
    """The job."""
    model: ConversionModel
    """Source and target."""
    trainer: ConversionTrainer | None = None
    """Devices."""


@dataclass(frozen=True)
class EvaluationRun(LearningRun):
    """`evaluation.run`."""

    adapter_learning_dir: PathText = optional()
    """The job folder of the adapter's training."""
    ia3_learning_dir: PathText = optional()
    """The job folder of IA3's training."""
    method: Literal["adapter", "ia3"] | None = optional()
    """Filled in by the launcher, so that an archive of the other method is refused."""


@dataclass(frozen=True)
class EvaluationTrainer:
    """`evaluation.trainer`: the names of Lightning's Trainer."""

    devices: Count
    """Processes on each node, one for each GPU."""
    num_nodes: Count
    """Nodes."""
    accelerator: Accelerator = "gpu"
    """Where the model runs."""
    precision: Precision = "bf16"
    """The type of weights and activations."""
    logger: bool = optional()
    """Not read: an evaluation logs nothing."""


@dataclass(frozen=True)
class Inference:
    """`evaluation.inference`: how answers are generated. NeMo's names."""

    greedy: bool = True
    """Whether the most likely token is taken each time; False: tokens are drawn."""
    top_k: Size = 0
    """Tokens that are drawn from; 0: all."""
    top_p: Annotated[float, Bounds(above=0, maximum=1, example=0.9)] = 0.9
    """The share of probability that is drawn from, taken from the most likely tokens."""
    temperature: Positive = 1.0
    """Divides the logits before a token is drawn."""
    add_BOS: bool | None = None
    """Whether prompts start with the beginning-of-text token; null: as in training."""
    tokens_to_generate: Count = 30
    """New tokens of an answer at most."""
    min_tokens_to_generate: Size = 0
    """New tokens before an answer may end."""
    repetition_penalty: Positive = 1.2
    """Divides the positive logits of tokens that have occurred, and multiplies negative ones; not for greedy."""
    batch_size: Count = 20
    """Prompts that are generated for at a time."""
    all_probs: bool = optional()
    """Not read: answers are written without probabilities."""
    compute_logprob: bool = optional()
    """Not read: answers are written without probabilities."""


@dataclass(frozen=True)
class Evaluation:
    """`evaluation`: answers a test set and scores the answers."""

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
    """SQuAD's file of answers; null: the answers are in `data_paths`, or there are none."""
    data_paths: Files
    """JSON Lines files with the prompts."""
    gpt_model_file: PathText = optional()
    """The older name of `language_model_path`."""
    tensor_model_parallel_size: Count = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Pipeline stages."""
    pipeline_model_parallel_split_rank: Size | None = optional()
    """T5 only: the first pipeline stage of the decoder."""
    split_string: str = "answer:"
    """NeMo's mark for where an answer begins; not read."""
    compare_with_base: bool = False
    """Whether the base model also answers without the adapter."""
    nemo_compat: bool = False
    """Whether NeMo's arithmetic is kept where this project's is more exact."""
    training_summary_path: PathText | None = None
    """The training's summary, whose figures the report repeats; null: none."""
    summary_path: PathText | None = None
    """The report to write; null: none."""
