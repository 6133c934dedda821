# SPDX-License-Identifier: Apache-2.0
"""GPUs that a job cannot use: told before anything is read, with what is true and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.api.model import Model
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.gpu_devices import VISIBLE, has_gpu, num_gpus
from nemo_launcher.runtime.precision import computed_dtype, dtype_of
from tests.gpu_devices import devices

pytestmark = pytest.mark.unit

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by\nURL"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_may_use_gpu", True)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def usable(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), built: str = "sm_80 sm_90") -> None:
    """Let torch have two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def refused(name: str = "gpu") -> Problem:
    with pytest.raises(UserError) as caught:
        ranks.use_accelerator(name)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 3), ("0,1", 2), ("2", 1), ("", 0), ("-1", 0), ("0,7,1", 1), ("GPU-3f, MIG-8a", 2), ("0, x", 1)],
)
def test_gpus_are_counted_as_cuda_does(
    visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices(monkeypatch, tmp_path, "257")
    assert num_gpus({} if visible is None else {VISIBLE: visible}) == count


def test_the_gpus_of_other_drivers_are_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices(monkeypatch, tmp_path, "")
    assert not has_gpu()
    (tmp_path / "dxg").touch()
    assert num_gpus() is None
    assert has_gpu()


def test_a_machine_without_a_gpu_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices(monkeypatch, tmp_path, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused().what == "is gpu, but this machine has no GPU"
    assert refused().fix == "trainer.accelerator=cpu"


def test_hidden_gpus_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices(monkeypatch, tmp_path, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VISIBLE, "")
    assert refused().what == "is gpu, but CUDA_VISIBLE_DEVICES='' hides the GPUs of this machine"
    assert refused().fix == "unset CUDA_VISIBLE_DEVICES, or trainer.accelerator=cpu"


def test_a_torch_for_cpus_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices(monkeypatch, tmp_path, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert refused("cuda").what == "is cuda, but torch 2.13.0+cpu is built for CPUs alone"


def test_an_old_driver_is_named_with_the_cuda_that_it_supports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise RuntimeError(TOO_OLD)

    devices(monkeypatch, tmp_path, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fails)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    what = "the NVIDIA driver of this machine supports CUDA 12.2, and torch 2.13.0+cu130 is built for CUDA 13.0"
    fix = "install a build of torch for CUDA 12.2 or older (https://pytorch.org), or a newer driver"
    assert refused().what == f"is gpu, but {what}"
    assert refused().fix == f"{fix}, or trainer.accelerator=cpu"

    ranks.use_accelerator("auto")
    assert capfd.readouterr().err == f"computing on the CPU: {what} ({fix})\n"
    ranks.use_accelerator("cpu")
    assert capfd.readouterr().err == ""


def test_another_reason_is_torchs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("No CUDA GPUs are available\nmore")

    devices(monkeypatch, tmp_path, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fails)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert refused().what.endswith("can use no GPU here: No CUDA GPUs are available")


def test_the_python_interface_names_its_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base: Path
) -> None:
    devices(monkeypatch, tmp_path, "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="built for CPUs alone") as caught:
        Model.load(tiny_base, device="cuda")
    assert caught.value.problems[0].where == "device"
    assert caught.value.problems[0].fix.endswith(", or device='cpu', or leave it out")


def test_fewer_gpus_than_processes_are_told_at_once_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    ranks.use_accelerator("gpu")
    texts = set()
    for number in ("2", "3"):
        monkeypatch.setenv("LOCAL_RANK", number)
        texts.add(str(refused()))
        ranks.use_accelerator("cpu")
    assert texts == {
        "trainer.devices: process 3 of this node has no GPU: it can use 2\n"
        "    -> trainer.devices=2, or a job with more GPUs"
    }


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), "sm_80 sm_90", True),
        ((8, 9), "sm_80 sm_90", True),
        ((12, 0), "sm_90 sm_120", True),
        ((12, 1), "sm_90a compute_90", True),
        ((7, 0), "sm_75 sm_80", False),
        ((10, 0), "sm_80 sm_90", False),
        ((9, 0), "gfx90a", True),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_refused(
    capability: tuple[int, int], built: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(monkeypatch, capability, built)
    if runs:
        ranks.use_accelerator("auto")
    else:
        assert "has no code for Tesla V100, of compute capability" in refused("auto").what


@pytest.mark.parametrize("name", ["bf16", "bf16-mixed"])
def test_bf16_is_refused_on_a_gpu_that_lacks_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, (7, 0))
    with pytest.raises(UserError, match=r"is bf16, which Tesla V100 does not compute") as caught:
        computed_dtype(name, "trainer.precision")
    assert caught.value.problems[0].where == "trainer.precision"
    for other in ("16", "32"):
        assert other in caught.value.problems[0].fix
        assert computed_dtype(other, "trainer.precision") == dtype_of(other, "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert computed_dtype(name, "trainer.precision") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    ranks.use_accelerator("cpu")
    assert computed_dtype(name, "trainer.precision") == torch.bfloat16
