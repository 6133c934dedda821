# SPDX-License-Identifier: Apache-2.0
"""A launch warns about 16-bit precision on a CPU that has no instructions for it."""

from __future__ import annotations

import re

import pytest

from nemo_launcher.launcher.checks import precision
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

KEY = "adapter_learning.trainer.precision"
LOCAL = ("cluster_type=interactive", "debug=True")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_gpu", lambda: False)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", ["bf16", "16", "32"])
def test_what_the_cpu_is_slow_at_is_told(
    launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, name: str, packs: bool
) -> None:
    monkeypatch.setattr(precision, "packs_bf16", lambda: packs)
    result = launch(*workplace.arguments, *LOCAL, f"{KEY}={name}")
    assert result.status == 0, result.err
    told = name == "16" or (name == "bf16" and not packs)
    assert (f"is {name}: this CPU computes" in result.err) == told
    assert (f"{KEY}=32" in result.err) == told


def test_nothing_is_said_of_other_machines_and_of_gpus(
    launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "packs_bf16", lambda: False)
    assert "this CPU computes" not in launch(*workplace.arguments, "cluster_type=bcm", "debug=True", f"{KEY}=bf16").err
    monkeypatch.setattr(precision, "has_gpu", lambda: True)
    on_gpu = "adapter_learning.trainer.accelerator=gpu"
    assert "this CPU computes" not in launch(*workplace.arguments, *LOCAL, on_gpu, f"{KEY}=bf16").err


def test_an_evaluation_is_told_too(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "packs_bf16", lambda: False)
    result = launch(
        "stages=[evaluation]", *workplace.arguments, *LOCAL, "evaluation.trainer.precision=bf16", "preflight=warn"
    )
    assert re.search(r"evaluation\.trainer\.precision.*: is bf16: this CPU computes", result.err)
