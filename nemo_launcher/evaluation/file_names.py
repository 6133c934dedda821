# SPDX-License-Identifier: Apache-2.0
"""Names of the files that an evaluation writes. Does not import torch, since the launcher checks them too."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_launcher.runtime.figures_file import FIGURES_SUFFIX
from nemo_launcher.runtime.provenance import PROVENANCE_NAME

RECORDS_NAME = "predictions.jsonl"
METRIC_NAME = "squad_metric.json"
OF_BASE = "base_"
"""Prefix of the files with the frozen base model's predictions."""
SCORES_SUFFIX = "_scores.jsonl"
"""Suffix, to the name of the predictions without its extension, of the file with scores."""
REPORT_NAME = "report.html"
PARTIAL_SUFFIX = ".partial"
"""Suffix of the file beside an output with the answers so far."""
CHOICES_SUFFIX, LIKELIHOODS_SUFFIX = ".choices", ".likelihoods"
"""Suffixes before it, of the files with the scores so far of answer choices and of right answers."""


def written_names(output: str, replicas: int, *, compares: bool) -> list[str]:
    """Return the names of all files that an evaluation writes, `output` first.

    replicas: number of model replicas. compares: whether the frozen base model is evaluated too.
    """
    kept = [output + suffix for suffix in ("", CHOICES_SUFFIX, LIKELIHOODS_SUFFIX)]
    names = [output, RECORDS_NAME, METRIC_NAME, *(part for name in kept for part in partial_names(name, replicas))]
    names += [OF_BASE + name for name in names] if compares else []
    return [*names, scores_name(output), figures_name(output), PROVENANCE_NAME, REPORT_NAME]


def scores_name(output: str) -> str:
    """Return the name of the file with the scores of each question."""
    return Path(output).stem + SCORES_SUFFIX


def figures_name(output: str) -> str:
    """Return the name of the file with the metrics and their intervals."""
    return Path(output).stem + FIGURES_SUFFIX


def partial_names(output: str, replicas: int) -> list[str]:
    """Return the names of the files with partial answers beside `output`, one per model replica."""
    return [f"{output}{PARTIAL_SUFFIX}{replica or ''}" for replica in range(replicas)]


def other_partials(output: Path, replicas: int) -> list[Path]:
    """Return files of partial answers beside `output` that a run with more replicas has left."""
    own = {*partial_names(output.name, replicas)}
    pattern = re.compile(re.escape(output.name + PARTIAL_SUFFIX) + r"[1-9]\d{0,5}", re.ASCII)
    beside = sorted(output.parent.iterdir()) if output.parent.is_dir() else []
    return [path for path in beside if path.name not in own and pattern.fullmatch(path.name)]
