# SPDX-License-Identifier: Apache-2.0
"""A chain of two stages on Slurm, and its jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.workplace import Launch, Workplace

CHAIN = ["stages=[adapter_learning,evaluation]", "evaluation.trainer.accelerator=cpu"]


def jobs_of(console: Launch, workplace: Workplace) -> list[dict[str, Any]]:
    return json.loads(console("status", workplace.results, "--json").out)["jobs"]


def training_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b/adapter_learning_squad"


def complete(workplace: Workplace) -> None:
    """Write the outputs of a successful training."""
    adapter = training_of(workplace) / "results/megatron_gpt_adapter.nemo"
    adapter.parent.mkdir(exist_ok=True)
    adapter.touch()
    (training_of(workplace) / "squad_gpt3_5b_exit_status").write_text("0\n")
