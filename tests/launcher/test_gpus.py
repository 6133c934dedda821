# SPDX-License-Identifier: Apache-2.0
"""A launch on this machine counts its GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.runtime.gpu_devices import VISIBLE
from tests.gpu_devices import devices
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("accelerator", ["gpu", "auto"])
def test_a_launch_on_this_machine_counts_its_gpus(
    accelerator: str, launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    devices(monkeypatch, tmp_path, "01")
    own = [*workplace.arguments, "cluster_type=interactive", f"adapter_learning.trainer.accelerator={accelerator}"]
    result = launch(*own, "adapter_learning.trainer.devices=4")
    assert result.status == 2, result.err
    assert "is 4, but jobs on this machine can use 2 GPUs" in result.err
    assert "lower adapter_learning.trainer.devices" in result.err
    assert launch(*own, "adapter_learning.trainer.devices=1").status == 0
    one = launch(*own, "adapter_learning.trainer.devices=2", "+env_vars.CUDA_VISIBLE_DEVICES='1'")
    assert "is 2, but jobs on this machine can use 1 GPU\n" in one.err, one.err
    none = launch(*own, "+env_vars.CUDA_VISIBLE_DEVICES=''", "adapter_learning.trainer.devices=1")
    assert ("CUDA_VISIBLE_DEVICES hides the GPUs" in none.err) == (accelerator == "gpu")
