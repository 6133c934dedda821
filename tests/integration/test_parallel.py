"""Training at tensor, pipeline and data parallel sizes gives what one process gives, on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from tests.engine import SCRIPTS, job_config, tiny_gpt_nemo, write_config, write_squad

pytestmark = pytest.mark.integration

# (tensor, pipeline, processes); what remains of the processes is data parallel
SIZES = {"tp2": (2, 1, 2), "tp2_dp2": (2, 1, 4), "tp2_pp2": (2, 2, 4)}
# Adam divides a gradient by its own size, and so makes much of rounding where it is next to nothing.
PLAIN_DESCENT: dict[str, Any] = {
    "model.optim.name": "sgd",
    "model.optim.betas": None,
    "model.optim.lr": 0.05,
    "model.optim.weight_decay": 0.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_nemo(tmp_path_factory.mktemp("base") / "base.nemo", initializer_range=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


def start(script: str, config: Mapping[str, Any], folder: Path, processes: int) -> str:
    """Run a job's script in this many processes; return its output."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(SCRIPTS / f"{script}.py"), str(write_config(folder / f"{script}_hydra.yaml", config))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(base: Path, data: Path, folder: Path, size: tuple[int, int, int], changes: Mapping[str, Any]) -> str:
    tensor, pipeline, processes = size
    changes = {
        "trainer.devices": processes,
        "model.tensor_model_parallel_size": tensor,
        "model.pipeline_model_parallel_size": pipeline,
        "model.micro_batch_size": 1,  # several micro-batches a rank
        "trainer.max_epochs": 1,
        **changes,
    }
    return start("train", job_config(base, data, folder, changes), folder, processes)


def assert_same_adapter(folder: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    mine, theirs = (read_adapter(path / "results/adapter.nemo")[1] for path in (folder, wanted))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def alone(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(base, data, folder, (1, 1, 1), PLAIN_DESCENT)
    return folder


@pytest.mark.parametrize("size", ["tp2_dp2", "tp2_pp2"])
def test_every_size_trains_the_same_adapter(size: str, alone: Path, base: Path, data: Path, tmp_path: Path) -> None:
    output = train(base, data, tmp_path, SIZES[size], PLAIN_DESCENT)
    assert_same_adapter(tmp_path, alone)
    assert output.count("adapter written") == 1  # one rank speaks for all


def test_a_checkpoint_goes_on_at_another_size(base: Path, data: Path, tmp_path: Path) -> None:
    """One epoch in two tensor-parallel processes, the second in one; Adam's state goes along."""
    half = {"trainer.max_epochs": 1, "model.optim.sched": None}
    whole = {"trainer.max_epochs": 2, "model.optim.sched": None}
    train(base, data, tmp_path / "moved", SIZES["tp2"], half)
    output = train(base, data, tmp_path / "moved", (1, 1, 1), whole)
    assert "resuming at step" in output
    train(base, data, tmp_path / "alone", (1, 1, 1), whole)
    assert_same_adapter(tmp_path / "moved", tmp_path / "alone", tolerance=1e-3)


def test_the_number_of_processes_is_checked(base: Path, data: Path, tmp_path: Path) -> None:
    config = job_config(base, data, tmp_path, {"trainer.devices": 4})
    command = [sys.executable, str(SCRIPTS / "train.py"), str(write_config(tmp_path / "c.yaml", config))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "4 devices on 1 node(s) need 4 processes; 1 were started" in done.stderr


def test_the_comparison_can_fail(alone: Path, base: Path, data: Path, tmp_path: Path) -> None:
    """A tenth more of a step is another adapter."""
    train(base, data, tmp_path, (1, 1, 1), PLAIN_DESCENT | {"model.optim.lr": 0.055})
    with pytest.raises(AssertionError):
        assert_same_adapter(tmp_path, alone)
