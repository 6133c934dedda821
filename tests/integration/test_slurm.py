# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real Slurm, which tests/integration/local-slurm.sh starts on this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from tests.engine import save_llama
from tests.integration.launching import chain, console, write_squad_source
from tests.integration.slurm_cluster import NEEDS_SLURM, details, wait_for, wait_for_end

pytestmark = [pytest.mark.integration, *NEEDS_SLURM]


def prepared(root: Path) -> Path:
    """Write model and data under a name with special characters for shells; return their folder."""
    path = root / "it's a $dir é"
    save_llama(path / "hf")
    write_squad_source(path / "data")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared(tmp_path)


def launch(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Launch the chain."""
    extra = ("container=null", "cluster.exclusive=False", *extra)
    return chain(folder, "llama", "hf", "adapter", *extra, cluster_type="bcm")


def submit(folder: Path, *extra: str) -> list[int]:
    """Launch the chain; return the job ids."""
    done = launch(folder, *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(number) for number in re.findall(r"submitted as job (\d+)", done.stdout)]


def states(jobs: list[int]) -> list[str]:
    """Wait until all jobs have left the queue; return their states."""
    wait_for_end(*jobs, partition="batch")
    return [re.search(r"JobState=(\w+)", details(job))[1] for job in jobs]


def adapter_of(folder: Path) -> Path:
    return folder / "results/tiny/adapter_learning_squad/results/megatron_llama_adapter.nemo"


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the jobs below `folder` as reported by `status`."""
    done = console("status", folder / "results", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["jobs"]


SITE = ("cluster.qos=high", "cluster.comment='it is mine'", "cluster.additional_parameters.nice=100")


@dataclass(frozen=True)
class Chain:
    """A completed chain, and the reports about it."""

    folder: Path
    jobs: list[int]
    details: str
    """Slurm's details of the last job."""
    submitted: list[dict[str, Any]]
    """Output of `status` before the first job had ended."""
    followed: str
    """Output of `logs --follow` of the evaluation."""
    states: list[str]
    ended: list[dict[str, Any]]
    """Output of `status` at the end."""
    adapter: dict[str, Any]


@pytest.fixture(scope="module")
def finished(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A chain of three jobs with a site's settings."""
    folder = prepared(tmp_path_factory.mktemp("finished"))
    subprocess.run(["sacctmgr", "--immediate", "add", "qos", "high"], check=True, capture_output=True)
    subprocess.run(["sacctmgr", "--immediate", "modify", "user", "root", "set", "qos+=high"], capture_output=True)
    jobs = submit(folder, *SITE, "cluster.setup=['echo set up']")
    shown, submitted = details(jobs[2]), jobs_of(folder)
    followed = console("logs", "evaluation", "--follow", "--results-dir", folder / "results").stdout
    ends = states(jobs)
    return Chain(folder, jobs, shown, submitted, followed, ends, jobs_of(folder), read_adapter(adapter_of(folder))[1])


def test_a_chain_of_three_jobs_and_its_state(finished: Chain) -> None:
    assert all(option in finished.details for option in ("QOS=high", "Comment=it is mine", "Nice=100"))
    first, *rest = finished.submitted
    assert first["state"] in ("pending", "running")
    assert [(job["state"], job["active"]) for job in rest] == [("pending", True)] * 2
    assert [job["reason"] for job in rest] == [f"Dependency: afterok:{job}" for job in finished.jobs[:2]]
    assert [job["job_id"] for job in (first, *rest)] == list(map(str, finished.jobs))
    assert "set up" in finished.followed
    assert "base + adapter" in finished.followed
    assert finished.states == ["COMPLETED"] * 3
    ended = finished.ended
    assert [(job["state"], job["exit_status"], job["outputs_written"]) for job in ended] == [("completed", 0, True)] * 3
    assert (ended[1]["step"], ended[1]["max_steps"]) == (2, 2)
    evaluation = finished.folder / "results/tiny/adapter_learning_squad_eval"
    again = console("rerun", evaluation)
    assert states([int(re.findall(r"submitted as job (\d+)", again.stdout)[0])]) == ["COMPLETED"], again.stderr
    assert len((evaluation / "results/predictions.jsonl").read_text().splitlines()) == 12


def test_two_nodes_with_two_tasks_each_train_the_same_adapter(finished: Chain) -> None:
    """Replaces the first adapter; the completed conversion is not run again."""
    shutil.rmtree(finished.folder / "results/tiny/adapter_learning_squad")
    size = ("adapter_learning.trainer.devices=2", "adapter_learning.trainer.num_nodes=2")
    batch = ("adapter_learning.model.micro_batch_size=2",)
    assert states(submit(finished.folder, *SITE, *size, *batch)) == ["COMPLETED"] * 2
    torch.testing.assert_close(read_adapter(adapter_of(finished.folder))[1], finished.adapter, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("slurm")
def test_a_failed_job_keeps_its_status_and_cancels_the_rest(folder: Path) -> None:
    jobs = submit(folder, "adapter_learning.model.encoder_seq_length=8")
    assert states(jobs) == ["COMPLETED", "FAILED", "CANCELLED"]
    assert "ExitCode=2:0" in details(jobs[1])
    assert "prompts are longer than 8 tokens" in "".join(
        path.read_text() for path in (folder / "results/tiny/adapter_learning_squad").glob("log-*")
    )


@pytest.mark.usefixtures("slurm")
def test_a_training_goes_on_after_the_signal_and_after_its_end(folder: Path) -> None:
    """The signal before the time limit requeues the job; after cancelling, it is run again."""
    jobs = submit(folder, "adapter_learning.trainer.max_epochs=2000")
    log = folder / f"results/tiny/adapter_learning_squad/log-squad_tiny_{jobs[1]}.out"
    wait_for("val_loss", log)  # the first validation is done
    subprocess.run(["scancel", "--signal=USR1", str(jobs[1])], check=True)
    wait_for("USR1: stopped after step", log)
    wait_for("resuming at step", log)
    (state,) = [job for job in jobs_of(folder) if job["stage"] == "adapter_learning"]
    assert (state["state"], state["max_steps"]) == ("running", 4000)
    assert min(state["step"], state["seconds_left"], state["val_loss"]) > 0
    again = launch(folder, "adapter_learning.trainer.max_epochs=2000")
    assert again.returncode == 0, again.stderr
    assert re.findall(r"(\w+): skipped: .*[(]job (\d+)[)] is (\w+)", again.stdout) == [
        ("conversion_hf2nemo", str(jobs[0]), "complete"),
        ("adapter_learning", str(jobs[1]), "running"),
        ("evaluation", str(jobs[2]), "pending"),
    ]
    other = launch(folder, "adapter_learning.trainer.max_epochs=3")
    assert other.returncode == 2
    assert f"(job {jobs[1]}) is running there with another script or configuration" in other.stderr
    assert "max_epochs: 2000" in (folder / "results/tiny/adapter_learning_squad/squad_tiny_hydra.yaml").read_text()

    training, here = folder / "results/tiny/adapter_learning_squad", ("--results-dir", folder / "results")
    assert console("rerun", training).returncode == 2
    assert "did you mean 'adapter_learning'?" in console("cancel", "adapter_lerning", *here).stderr
    cancelled = console("cancel", "--all", *here)
    found = re.findall(r"\(job (\d+)\): cancelled", cancelled.stdout)
    assert set(found) == set(map(str, jobs[1:])), cancelled.stderr
    assert states(jobs) == ["COMPLETED", *["CANCELLED"] * 2]
    assert {job["stage"]: job["state"] for job in jobs_of(folder)} == {
        "conversion_hf2nemo": "completed",
        "adapter_learning": "cancelled",
        "evaluation": "cancelled",
    }
    assert any((training / "results/checkpoints").iterdir())
    again = console("rerun", "squad_tiny", *here)
    (job,) = re.findall(r"submitted as job (\d+)", again.stdout)
    wait_for("resuming at step", training / f"log-squad_tiny_{job}.out")
    assert f"(job {job}): cancelled" in console("cancel", job, *here).stdout
    assert states([int(job)]) == ["CANCELLED"]


@pytest.mark.usefixtures("slurm")
def test_a_singleton_chain_goes_on_in_order_whatever_became_of_a_job(folder: Path) -> None:
    jobs = submit(folder, "dependency=singleton", "adapter_learning.model.encoder_seq_length=8")
    assert states(jobs) == ["COMPLETED", "FAILED", "FAILED"]
    shown = [details(job) for job in jobs]
    times = [re.search(rf"{name}=(\S+)", text)[1] for text in shown for name in ("StartTime", "EndTime")]
    assert times == sorted(times)
    (name,) = {re.search(r"JobName=(\S+)", text)[1] for text in shown}
    assert re.fullmatch(r"nemo-megatron-convert_tiny-[0-9a-f]{8}", name)  # jobs of other folders do not have it
    failed = jobs_of(folder)[1]
    assert (failed["state"], failed["reason"], failed["exit_status"]) == ("failed", "exit status 2", 2)


@pytest.mark.usefixtures("slurm")
def test_what_this_cluster_does_not_have_is_told_at_launch(folder: Path) -> None:
    partition = ["scontrol", "update", "PartitionName=batch"]
    subprocess.run([*partition, "MaxTime=60"], check=True)
    arguments = ("container=image", "cluster.partition=batch")
    long = chain(folder, "llama", "hf", "adapter", *arguments, cluster_type="bcm")
    subprocess.run([*partition, "MaxTime=INFINITE"], check=True)
    assert long.returncode == 2
    assert "04:00:00, but partition 'batch' allows at most 01:00:00" in long.stderr
    assert "this Slurm has no --container-image" in long.stderr
    misspelt = chain(folder, "llama", "hf", "adapter", "cluster.partition=bach", cluster_type="bcm")
    assert "this cluster has no partition 'bach'\n    -> did you mean 'batch'?" in misspelt.stderr
    assert not (folder / "results").exists()
