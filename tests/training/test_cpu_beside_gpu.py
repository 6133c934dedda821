# SPDX-License-Identifier: Apache-2.0
"""`trainer.accelerator=cpu` on a machine with GPUs: nothing touches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_launcher import Model
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import ranks
from tests.jobs import evaluation_config, job_config, run_script

pytestmark = pytest.mark.integration


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a GPU is used")


def have_gpus() -> None:
    """Let torch have GPUs that must not be used; nemo_toolkit asks which one is the current one."""
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: 0
    for name in ("init", "_lazy_init", "set_device", "synchronize", "get_device_capability", "get_arch_list"):
        setattr(torch.cuda, name, refuse)


def test_jobs_compute_on_the_cpu(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, data, tmp_path / "train", {"trainer.max_epochs": 1})
    trained = run_script("train", config, tmp_path, before=have_gpus)
    assert trained.status == 0, trained.output
    adapter = Path(config["model"]["nemo_path"])
    assert json.loads((adapter.parent / "provenance.json").read_text())["device"] == "cpu"
    evaluated = run_script(
        "evaluate", evaluation_config(tiny_base, adapter, data, tmp_path / "evaluation"), tmp_path, before=have_gpus
    )
    assert evaluated.status == 0, evaluated.output


def test_a_conversion_computes_on_the_cpu(tiny_base: Path, tmp_path: Path) -> None:
    model = {"hf_model_path": str(tiny_base.with_name("base_hf")), "nemo_path": str(tmp_path / "own.nemo")}
    run = {"name": "convert", "results_dir": str(tmp_path)}
    converted = run_script("convert_hf2nemo", {"run": run, "model": model}, tmp_path, before=have_gpus)
    assert converted.status == 0, converted.output


def test_a_model_of_the_python_interface_computes_on_the_cpu(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_may_use_gpu", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = Model.load(tiny_base, device="cpu")
    assert parallel.local_device() == torch.device("cpu")
    assert model.generate(["Anna lives in"], tokens_to_generate=2)
