# SPDX-License-Identifier: Apache-2.0
"""Check the metrics of an evaluation and of a training's validations: names, libraries, and what they need."""

from __future__ import annotations

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stages import Evaluation, Learning


def check_metrics(stage: Evaluation) -> list[Problem]:
    """Check evaluation.metrics."""
    names = stage.section.metrics
    if names is None:
        return []
    from nemo_launcher.evaluation.metrics.registry import name_problems, split_model_problems  # imports all metrics

    num_ranks = stage.section.tensor_model_parallel_size * stage.section.pipeline_model_parallel_size
    key = stage.key("metrics")
    return name_problems(names, key) + split_model_problems(names, num_ranks, key)


def check_monitors(stage: Learning) -> list[Problem]:
    """Check the metrics that checkpoints and early stopping follow."""
    from nemo_launcher.evaluation.monitored import monitor_problems  # imports all metrics

    return monitor_problems(stage.section, stage.key)
