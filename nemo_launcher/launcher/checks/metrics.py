# SPDX-License-Identifier: Apache-2.0
"""Check the metrics of an evaluation: their names, and the libraries that they need."""

from __future__ import annotations

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stages import Evaluation


def check_metrics(stage: Evaluation) -> list[Problem]:
    """Check evaluation.metrics."""
    names = stage.section.metrics
    if names is None:
        return []
    from nemo_launcher.evaluation.metrics.registry import name_problems, split_model_problems  # imports all metrics

    num_ranks = stage.section.tensor_model_parallel_size * stage.section.pipeline_model_parallel_size
    key = stage.key("metrics")
    return name_problems(names, key) + split_model_problems(names, num_ranks, key)
