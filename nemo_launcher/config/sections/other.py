# SPDX-License-Identifier: Apache-2.0
"""data_preparation, conversion_hf2nemo and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Bounds
from nemo_launcher.config.precision import Precision, StoredPrecision
from nemo_launcher.config.schema import OPTIONAL, PathText
from nemo_launcher.config.sections.common import (
    Accelerator,
    Count,
    Positive,
    Run,
    Size,
)
from nemo_launcher.config.sections.learning import Files, LearningRun


@dataclass
class DataPreparationRun(Run):
    """data_preparation.run"""

    task_name: Literal["squad"] = "squad"


@dataclass
class DataPreparation:
    """Prepares a task's JSONL files."""

    run: DataPreparationRun
    source_dir: PathText
    output_dir: PathText
    download: bool = True


@dataclass
class ConversionRun(Run):
    """conversion_hf2nemo.run"""

    model_train_name: str = OPTIONAL


@dataclass
class ConversionTrainer:
    """conversion_hf2nemo.trainer"""

    devices: Count = 1
    num_nodes: Count = 1


@dataclass
class ConversionModel:
    """conversion_hf2nemo.model"""

    hf_model_path: PathText
    nemo_path: PathText
    precision: StoredPrecision | None = None


@dataclass
class Conversion:
    """Makes a .nemo archive of a Hugging Face model."""

    run: ConversionRun
    model: ConversionModel
    trainer: ConversionTrainer | None = None


@dataclass
class EvaluationRun(LearningRun):
    """evaluation.run"""

    adapter_learning_dir: PathText = OPTIONAL
    ia3_learning_dir: PathText = OPTIONAL
    method: Literal["adapter", "ia3"] = OPTIONAL  # filled in by the launcher, so that the other method is refused


@dataclass
class EvaluationTrainer:
    """evaluation.trainer"""

    devices: Count
    num_nodes: Count
    accelerator: Accelerator = "gpu"
    precision: Precision = "bf16"
    logger: bool = OPTIONAL


@dataclass
class Inference:
    """How answers are generated."""

    greedy: bool = True
    top_k: Size = 0
    top_p: Annotated[float, Bounds(above=0, maximum=1, example=0.9)] = 0.9
    temperature: Positive = 1.0
    add_BOS: bool | None = None
    tokens_to_generate: Count = 30
    min_tokens_to_generate: Size = 0
    repetition_penalty: Positive = 1.2
    batch_size: Count = 20
    all_probs: bool = OPTIONAL
    compute_logprob: bool = OPTIONAL


@dataclass
class Evaluation:
    """Answers a test set and scores the answers."""

    run: EvaluationRun
    trainer: EvaluationTrainer
    inference: Inference
    language_model_path: PathText
    adapter_model_file: PathText
    pred_file_path: PathText
    ground_truth_file_path: PathText | None  # null: the answers are in data_paths, or there are none
    data_paths: Files
    gpt_model_file: PathText = OPTIONAL  # the older name of language_model_path
    tensor_model_parallel_size: Count = 1
    pipeline_model_parallel_size: Count = 1
    pipeline_model_parallel_split_rank: Size | None = OPTIONAL
    split_string: str = "answer:"
    compare_with_base: bool = False
    nemo_compat: bool = False
    training_summary_path: PathText | None = None
    summary_path: PathText | None = None
