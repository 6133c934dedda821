# SPDX-License-Identifier: Apache-2.0
"""The variables that scripts export by themselves: which jobs have them, and what takes precedence."""

from __future__ import annotations

import subprocess

import pytest

from nemo_launcher.clusters.exports import EXPORTS
from tests.documents import TEXTS
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit
ON_GPU = "adapter_learning.trainer.accelerator=gpu"
TWO = "adapter_learning.trainer.devices=2"


@pytest.fixture
def script(launch: Launch, workplace: Workplace) -> str:
    """The script of a job with two ranks on GPUs."""
    return written(launch, workplace, ON_GPU, TWO)


def written(launch: Launch, place: Workplace, *given: str) -> str:
    arguments = (*place.arguments, "preflight=off", "cluster_type=bcm", "debug=True", *given)
    assert launch(*arguments).status == 0
    return (place.results / "gpt3_5b/adapter_learning_squad/squad_gpt3_5b_submission.sh").read_text()


def value_in(script: str, **environment: str) -> str:
    """Return what a script's exports make of NCCL_DEBUG, in bash."""
    lines = [line for line in script.splitlines() if line.startswith("export ")]
    command = "\n".join([*lines, "printenv NCCL_DEBUG || true"])
    return subprocess.run(["/bin/bash", "-c", command], env=environment, capture_output=True, text=True).stdout.strip()


def test_ranks_on_gpus_say_why_a_collective_failed(script: str) -> None:
    assert value_in(script) == "WARN"
    assert value_in(script, NCCL_DEBUG="INFO") == "INFO"


@pytest.mark.parametrize("given", [(ON_GPU, "adapter_learning.trainer.devices=1"), (TWO,)])
def test_one_rank_or_a_cpu_has_no_nccl(given: tuple[str, ...], launch: Launch, workplace: Workplace) -> None:
    assert "NCCL" not in written(launch, workplace, *given)


def test_the_configuration_takes_precedence(launch: Launch, workplace: Workplace) -> None:
    script = written(launch, workplace, ON_GPU, TWO, "env_vars.NCCL_DEBUG=TRACE")
    assert value_in(script, NCCL_DEBUG="INFO") == "TRACE"
    assert script.count("NCCL_DEBUG") == 1


def test_the_guide_has_each_variable_with_its_reason() -> None:
    for export in EXPORTS:
        assert f"| `{export.name}={export.value}` | {export.jobs} | {export.reason} |" in TEXTS["docs/clusters.md"]
