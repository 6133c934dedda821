# SPDX-License-Identifier: Apache-2.0
"""Parallel sizes do not change results: losses, gradients, adapters, checkpoints and answers equal one process's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.training.checkpoint_file import read_checkpoint
from tests import t5
from tests.engine import tiny_gpt_nemo, write_squad
from tests.jobs import REPOSITORY, SCRIPTS, Job, evaluation_config, job_config, write_config
from tests.world import TOLERANCE, run_job

pytestmark = pytest.mark.integration


# --- jobs -------------------------------------------------------------------------------------------------------


SLOW = {"model.optim.lr": 1e-3, "model.adapter_tuning.row_init_method": "xavier"}  # Adam amplifies differences less

TP2 = {"model.tensor_model_parallel_size": 2, "trainer.devices": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "base.nemo", num_heads=4, num_decoder_layers=2)


@pytest.fixture(scope="module")
def alone(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    succeeded(train(tiny_base, data, folder))
    return folder


def train(base: Path, data: Path, folder: Path, changes: Mapping[str, Any] | None = None, *before: Any) -> list[Job]:
    """Run a training job with one rank per device."""
    config = job_config(base, data, folder, SLOW | dict(changes or {}))
    return run_job(config["trainer"]["devices"], "train", config, folder, *before)


def succeeded(jobs: list[Job]) -> list[Job]:
    assert [job.status for job in jobs] == [0] * len(jobs), "\n".join(job.output for job in jobs)
    return jobs


def kill_at_step(step: int) -> None:
    """Kill this rank with SIGKILL at the start of this optimizer step (from 0)."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            torch.distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def assert_same_job(folder: Path, wanted: Path) -> None:
    mine, theirs = (read_adapter(path / "results/adapter.nemo")[1] for path in (folder, wanted))
    torch.testing.assert_close(mine, theirs, **TOLERANCE)
    summaries = [json.loads((path / "results/training_summary.json").read_text()) for path in (folder, wanted)]
    for key in ("trainable_parameters", "trainable_share", "steps"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[0]["best_val_loss"] == pytest.approx(summaries[1]["best_val_loss"], rel=1e-5)
    last = [next((path / "results/checkpoints").glob("*-last.ckpt")) for path in (folder, wanted)]
    mine, theirs = map(read_checkpoint, last)
    for name in ("state_dict", "global_step", "lr_schedulers"):
        torch.testing.assert_close(mine[name], theirs[name], **TOLERANCE)
    moments = [checkpoint["optimizer_states"][0]["state"]["exp_avg"] for checkpoint in (mine, theirs)]
    torch.testing.assert_close(*moments, **TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(TP2, id="tensor"),
        pytest.param({"model.pipeline_model_parallel_size": 2, "trainer.devices": 2}, id="pipeline"),
        pytest.param({"trainer.devices": 2}, id="data"),
        pytest.param({**TP2, "model.sequence_parallel": True}, id="sequence"),
    ],
)
def test_a_job_of_two_ranks(changes: dict[str, Any], alone: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    first, second = succeeded(train(tiny_base, data, tmp_path, changes))
    assert_same_job(tmp_path, alone)
    assert "training: step 8 of 8" in first.output
    assert "adapter written" in first.output
    assert not re.search("training|loading|adapter written|samples", second.output)


@pytest.mark.parametrize(("killed", "resumed"), [({}, TP2), (TP2, {})], ids=["1_to_2", "2_to_1"])
def test_a_killed_job_goes_on_at_another_size(
    killed: dict[str, Any], resumed: dict[str, Any], alone: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    jobs = train(tiny_base, data, tmp_path, killed, kill_at_step, 5)
    assert {job.status for job in jobs} == {-signal.SIGKILL}
    jobs = succeeded(train(tiny_base, data, tmp_path, resumed))
    assert "resuming at step 4 " in jobs[0].output
    assert_same_job(tmp_path, alone)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_job_with_a_stage_without_adapters_goes_on(layer: int, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Killed with two pipeline stages, one of them without a parameter to train, and resumed; exported by rank 0."""
    chosen = {"model.adapter_tuning.layers": layer}
    stages = chosen | {"model.pipeline_model_parallel_size": 2, "trainer.devices": 2}
    succeeded(train(tiny_base, data, tmp_path / "alone", chosen))
    jobs = train(tiny_base, data, tmp_path / "stages", stages, kill_at_step, 5)
    assert {job.status for job in jobs} == {-signal.SIGKILL}
    jobs = succeeded(train(tiny_base, data, tmp_path / "stages", stages))
    assert "resuming at step 4 " in jobs[0].output
    assert f" in layers {layer}, 8 steps" in jobs[0].output
    assert_same_job(tmp_path / "stages", tmp_path / "alone")
    config, state = read_adapter(tmp_path / "stages/results/adapter.nemo")
    assert config["adapter_tuning"]["layers"] == str(layer)
    with safe_open(tmp_path / "stages/results/adapter.safetensors", "pt") as copy:
        assert json.loads(copy.metadata()["model_config"]) == config
    assert {key.partition("layers.")[2][0] for key in state} == {str(layer)}


def test_a_t5_job_in_pipeline_stages(t5_base: Path, tmp_path: Path) -> None:
    data = t5.write_data(tmp_path / "data")
    adapters = []
    for ranks in (1, 2):
        changes = SLOW | {"model.pipeline_model_parallel_size": ranks, "trainer.devices": ranks}
        folder = tmp_path / str(ranks)
        succeeded(run_job(ranks, "train", t5.training_config(t5_base, data, folder, changes), folder))
        adapters.append(read_adapter(folder / "adapter.nemo")[1])
    torch.testing.assert_close(*adapters, **TOLERANCE)


# --- evaluation -------------------------------------------------------------------------------------------------


SIZES = {
    "tensor": {"tensor_model_parallel_size": 2},
    "pipeline": {"pipeline_model_parallel_size": 2},
    "data": {},
}


def predictions(folder: Path) -> str:
    return next(folder.rglob("predictions.jsonl")).read_text() + next(folder.rglob("squad_metric.json")).read_text()


def test_evaluation_of_a_gpt(alone: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    def evaluate(name: str, ranks: int, **changes: Any) -> str:
        config = evaluation_config(tiny_base, alone / "results/adapter.nemo", data, tmp_path / name, **changes)
        config["trainer"]["devices"] = ranks
        jobs = succeeded(run_job(ranks, "evaluate", config, tmp_path / name))
        assert sum("exact match" in job.output for job in jobs) == 1
        return predictions(tmp_path / name)

    wanted = evaluate("alone", 1)
    for name, sizes in SIZES.items():
        assert evaluate(name, 2, **sizes) == wanted


def test_evaluation_of_a_t5(t5_base: Path, tmp_path: Path) -> None:
    data = t5.write_data(tmp_path / "data")
    succeeded(run_job(1, "train", t5.training_config(t5_base, data, tmp_path / "train"), tmp_path / "train"))

    def evaluate(name: str, ranks: int, **changes: Any) -> str:
        config = t5.evaluation_config(t5_base, tmp_path / "train/adapter.nemo", data, tmp_path / name, **changes)
        config.trainer.devices = ranks
        succeeded(run_job(ranks, "evaluate", config, tmp_path / name))
        return predictions(tmp_path / name)

    wanted = evaluate("alone", 1)
    for name, sizes in SIZES.items():
        assert evaluate(name, 2, **sizes) == wanted


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"trainer.devices": 4}, "need 4 processes; 2 were started", id="devices"),
        pytest.param({"model.pipeline_model_parallel_size": 3}, "3 (pipeline)", id="replicas"),
        pytest.param(
            {"model.adapter_tuning.adapter_dim": 5, **TP2},
            "5 does not divide over tensor_model_parallel_size 2",
            id="adapter",
        ),
        pytest.param({"model.language_model_path": "/nowhere.nemo", **TP2}, "no such .nemo file", id="base"),
    ],
)
def test_a_mistake_is_printed_once(
    changes: dict[str, Any], words: str, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    config = job_config(tiny_base, data, tmp_path, {"trainer.devices": 2} | changes)
    jobs = run_job(2, "train", config, tmp_path)
    assert [job.status for job in jobs] == [2, 2]
    assert sum(job.output.count(words) for job in jobs) == 1, [job.output for job in jobs]
    assert not any("Traceback" in job.output for job in jobs)


def test_heads_that_do_not_divide(tmp_path: Path, data: Path) -> None:
    base = tiny_gpt_nemo(tmp_path / "base.nemo", num_attention_heads=3, num_key_value_heads=3, hidden_size=48)
    jobs = train(base, data, tmp_path, TP2)
    assert [job.status for job in jobs] == [2, 2]
    assert sum("2 does not divide the model's num_attention_heads 3" in job.output for job in jobs) == 1


def test_a_rank_that_fails_ends_the_others(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Started like the launcher does; only the second rank cannot read its training data."""
    (tmp_path / "train_0.jsonl").write_bytes((data / "squad_train.jsonl").read_bytes())
    path = write_config(tmp_path / "train_hydra.yaml", job_config(tiny_base, data, tmp_path, TP2))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    of_rank = 'exec "$0" "$1" "$2" "model.data.train_ds=[$3/train_$RANK.jsonl]"'
    script = [sys.executable, str(SCRIPTS / "train.py"), str(path), str(tmp_path)]
    command = [*start, "bash", "-c", of_rank, *script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert done.stderr.count("train_1.jsonl") == 1
    assert not (tmp_path / "results/adapter.nemo").exists()
