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
    from nemo_launcher.evaluation.metrics.registry import name_problems  # imports all metrics

    return name_problems(names, stage.key("metrics"))
