# SPDX-License-Identifier: Apache-2.0
"""What a launch on Kubernetes leaves: records, states and logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.workplace import Launch, Workplace

PREDICT = "pathlib.Path(config['pred_file_path']).write_text('x')\nprint('evaluated')\n"


def jobs_of(console: Launch, workplace: Workplace) -> list[dict[str, Any]]:
    return json.loads(console("status", workplace.results, "--json").out)["jobs"]


def states(console: Launch, workplace: Workplace) -> list[str]:
    return [job["state"] for job in jobs_of(console, workplace)]


def training_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b/adapter_learning_squad"


def log_of(folder: Path, suffix: str = "") -> str:
    (log,) = folder.glob(f"log-*_{'?' * 8}{suffix}.out")
    return log.read_text()
