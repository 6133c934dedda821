# SPDX-License-Identifier: Apache-2.0
"""The names of the files that an evaluation writes; without torch, since the launcher checks them ahead of the job."""

from __future__ import annotations

import re
from pathlib import Path

RECORDS_NAME = "predictions.jsonl"
METRIC_NAME = "squad_metric.json"
OF_BASE = "base_"
"""What the names of the files begin with that hold the frozen base's predictions."""
PARTIAL_SUFFIX = ".partial"
"""Of the file beside an output that holds the answers so far."""


def written_names(output: str, replicas: int, *, compares: bool) -> list[str]:
    """Return the names of all files that an evaluation writes, `output` first.

    replicas: the copies of the model that answer side by side. compares: with the frozen base.
    """
    names = [output, RECORDS_NAME, METRIC_NAME, *partial_names(output, replicas)]
    return names + [OF_BASE + name for name in names] if compares else names


def partial_names(output: str, replicas: int) -> list[str]:
    """Return the names of the files of answers so far beside `output`, one for each model replica."""
    return [f"{output}{PARTIAL_SUFFIX}{replica or ''}" for replica in range(replicas)]


def other_partials(output: Path, replicas: int) -> list[Path]:
    """Return the files beside `output` with names as those of `partial_names`, left by more replicas than these."""
    own = {*partial_names(output.name, replicas)}
    pattern = re.compile(re.escape(output.name + PARTIAL_SUFFIX) + r"[1-9]\d{0,5}", re.ASCII)
    beside = sorted(output.parent.iterdir()) if output.parent.is_dir() else []
    return [path for path in beside if path.name not in own and pattern.fullmatch(path.name)]
