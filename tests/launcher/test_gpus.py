# SPDX-License-Identifier: Apache-2.0
"""A launch on this machine counts its GPUs and asks for their memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.launcher.checks import gpu_memory, small_gpus
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.runtime.gpu_devices import VISIBLE, largest_gpu
from tests.gpu_devices import devices
from tests.jobs import job_config
from tests.launcher.test_estimate import stage_of, unpacked_7b
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


@pytest.mark.parametrize(
    ("answer", "size"),
    [("echo 24576; echo 81559", 81559 << 20), ("echo '[N/A]'", None), ("exit 9", None), (None, None)],
)
def test_nvidia_smi_is_asked_for_the_memory_if_it_is_there(
    answer: str | None, size: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if answer is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert largest_gpu() == size


def test_a_training_that_probably_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_memory, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu_memory, "largest_gpu", lambda: 12 << 30)
    base = unpacked_7b(tmp_path / "base")
    changes = {"model.encoder_seq_length": 512, "trainer.precision": "bf16", "trainer.accelerator": "gpu"}
    stage = stage_of(job_config(base, tmp_path, tmp_path, changes), "llama")
    (told,) = small_gpus([stage], "interactive", LaunchProbe())
    assert "GiB on each GPU, and those of this machine have 12.0" in told.what
    assert [*small_gpus([stage], "bcm", LaunchProbe())] == []
    on_cpu = stage_of(job_config(base, tmp_path, tmp_path, changes | {"trainer.accelerator": "cpu"}), "llama")
    assert [*small_gpus([on_cpu], "interactive", LaunchProbe())] == []
    monkeypatch.setattr(gpu_memory, "largest_gpu", lambda: 80 << 30)
    assert [*small_gpus([stage], "interactive", LaunchProbe())] == []
    monkeypatch.setattr(gpu_memory, "largest_gpu", lambda: None)
    assert [*small_gpus([stage], "interactive", LaunchProbe())] == []
