# SPDX-License-Identifier: Apache-2.0
"""All ways in which a real Slurm ends a job, and their reports; the engine's scripts are replaced by small ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archives import write_base
from tests.integration.launching import LIMIT_S, console
from tests.integration.slurm_cluster import NEEDS_SLURM, details, slurm_command, wait_for, wait_for_end
from tests.jobs import REPOSITORY

pytestmark = [pytest.mark.integration, *NEEDS_SLURM]

# A stand-in for train.py: prints its input and ends like the real one, or when the gate, a pipe, becomes readable.
TRAIN = """
import os, pathlib, select, signal, sys
sys.path.insert(0, {repository!r})
from nemo_launcher.runtime import signals
signals.watch()
signals.defer()
noted, note = os.pipe()  # a byte for each signal
os.set_blocking(note, False)
signal.set_wakeup_fd(note)
import yaml
config = yaml.safe_load(open(sys.argv[1]))
adapter = pathlib.Path(config["model"]["nemo_path"])
adapter.parent.mkdir(parents=True, exist_ok=True)
checkpoint = adapter.parent / "checkpoint"
resumed = checkpoint.exists()
print("resuming" if resumed else "starting", flush=True)
gate = os.open(pathlib.Path(__file__).parent / "gate", os.O_RDONLY | os.O_NONBLOCK)
select.select([noted, gate], [], [])
if signals.received():
    if signals.received() == signal.SIGTERM:
        os.read(noted, 1)
        select.select([noted], [], [], 3)  # Slurm's second TERM, unless both came as one; KILL comes after five seconds
    checkpoint.write_text("saved")
    print("saved on", signal.Signals(signals.received()).name, flush=True)
    sys.exit(75 if signals.received() == signal.SIGUSR1 else 128 + signals.received())
adapter.write_text("adapter")
"""


class Place:
    """A folder with scripts, a base and results, and the launcher for it."""

    def __init__(self, root: Path) -> None:
        self.root, self.scripts, self.results = root, root / "launcher_scripts", root / "results"
        self.scripts.mkdir()
        write_base(root / "base.nemo")
        (self.scripts / "train.py").write_text(TRAIN.format(repository=str(REPOSITORY)))
        os.mkfifo(self.scripts / "gate")
        self._gate = os.open(self.scripts / "gate", os.O_RDWR)  # keeps written data while it is open
        evaluate = "import pathlib, sys, yaml\nconfig = yaml.safe_load(open(sys.argv[1]))\n"
        evaluate += "path = pathlib.Path(config['pred_file_path'])\npath.parent.mkdir(parents=True, exist_ok=True)\n"
        (self.scripts / "evaluate.py").write_text(evaluate + "path.write_text('')\n")
        data = {"taskname": "squad", "context": "c", "question": "q", "answer": "a", "id": "1"}
        folder = root / "data/prompt_data/v1.1"
        folder.mkdir(parents=True)
        for name in ("squad_train", "squad_val", "squad_test", "squad_test_ground_truth"):
            (folder / f"{name}.jsonl").write_text((json.dumps(data) + "\n") * 128)

    @property
    def folder(self) -> Path:
        """The training's folder."""
        return self.results / "gpt3_5b/adapter_learning_squad"

    def launch(self, *arguments: str, chain: bool = False) -> subprocess.CompletedProcess[str]:
        """Launch a training, with or without its evaluation."""
        base = self.root / "base.nemo"
        own = [
            f"launcher_scripts_path={self.scripts}",
            f"base_results_dir={self.results}",
            f"data_dir={self.root}/data",
            "cluster_type=bcm",
            "cluster.exclusive=False",
            "preflight=warn",
            f"adapter_learning.model.language_model_path={base}",
            f"evaluation.language_model_path={base}",
            "adapter_learning.trainer.devices=1",
            "adapter_learning.trainer.accelerator=cpu",
            "evaluation.trainer.accelerator=cpu",
            f"stages=[adapter_learning{',evaluation' if chain else ''}]",
        ]
        command = [sys.executable, str(REPOSITORY / "main.py"), *own, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def submit(self, *arguments: str, chain: bool = False) -> list[str]:
        """Launch; return the job ids."""
        done = self.launch(*arguments, chain=chain)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"submitted as job (\d+)", done.stdout)

    def jobs(self) -> list[dict[str, Any]]:
        """Return the output of `status`."""
        done = console("status", self.results, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["jobs"]

    def open_gate(self) -> None:
        """Let trainings end instead of waiting for a signal."""
        os.write(self._gate, b"open")  # never read from the pipe

    def close(self) -> None:
        """Close the gate."""
        os.close(self._gate)

    def said(self, job: str, text: str, suffix: str = "out") -> None:
        """Wait until a job's log contains `text`."""
        wait_for(text, self.folder / f"log-squad_gpt3_5b_{job}.{suffix}")


@pytest.fixture
def place(tmp_path: Path, slurm: None) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def start_now(job: str) -> None:
    """Start a requeued job soon; in the second in which it was requeued, slurmd would refuse its new credential."""
    slurm_command("scontrol", "update", f"jobid={job}", "StartTime=now+2")


@pytest.mark.parametrize("partition", ["low", "lowest"])
def test_a_preempted_job_saves_and_is_told(partition: str, place: Place) -> None:
    """Slurm sends TERM twice; the partition determines whether the job is requeued."""
    own = [f"cluster.requeue={partition == 'low'}", "cluster.mem=null", "adapter_learning.trainer.num_nodes=2"]
    (job,) = place.submit(f"cluster.partition={partition}", *own)
    place.said(job, "starting")
    everything = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    other = slurm_command("sbatch", "--parsable", *everything).strip()
    place.said(job, "saved on SIGTERM")
    if partition == "low":
        wait_for_end(other)
        (told,) = place.jobs()
        assert told["state"] in ("requeued", "running"), told
        place.open_gate()
        if told["state"] == "requeued":
            start_now(job)
        place.said(job, "resuming")
        place.said(job, "restart 1", "err")
        wait_for_end(job)
        assert [j["state"] for j in place.jobs()] == ["completed"]
    else:
        wait_for_end(job)
        assert [(j["state"], j["active"]) for j in place.jobs()] == [("preempted", False)]


def test_a_node_that_fails_under_a_job_is_no_success(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (job,) = place.submit("cluster.requeue=False", "cluster.additional_parameters.no_requeue=True")
    place.said(job, "starting")
    node = re.search(r"NodeList=(node\d)", details(job))
    assert node is not None
    slurm_command("scontrol", "update", f"nodename={node[1]}", "state=down", "reason=test")
    try:
        wait_for_end(job)
        (told,) = place.jobs()
        assert (told["state"], told["active"], told["outputs_written"]) == ("node_fail", False, False)
        deaf(monkeypatch, tmp_path, "squeue", "sacct")
        (told,) = place.jobs()
        assert told["state"] != "completed"
    finally:
        slurm_command("scontrol", "update", f"nodename={node[1]}", "state=idle")


def deaf(monkeypatch: pytest.MonkeyPatch, folder: Path, *commands: str) -> None:
    """Make Slurm's commands fail immediately, as without a controller."""
    for command in commands:
        path = folder / "deaf" / command
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/deaf:{os.environ['PATH']}")


def test_a_warning_requeues_and_the_waiting_job_has_not_failed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = place.submit()
    place.said(job, "starting")
    slurm_command("scancel", "--signal=USR1", job)
    place.said(job, "goes back into the queue", "err")
    states = {j["state"] for j in place.jobs()}
    assert states <= {"requeued", "completing", "pending"}, states
    with monkeypatch.context() as patch:
        deaf(patch, place.root, "squeue", "sacct")
        assert [j["state"] for j in place.jobs()] == ["requeued"]
        cancelled = console("cancel", "--all", "--results-dir", place.results)
        assert (cancelled.returncode, "is unknown" in cancelled.stderr) == (1, True)
    wait_for_end(job)
    assert [(j["state"], j["reason"]) for j in place.jobs()] == [("cancelled", "")]


def limit(jobs: int) -> None:
    """Limit the user's jobs in the queue; -1: no limit."""
    slurm_command("sacctmgr", "--immediate", "modify", "user", "root", "set", f"maxsubmitjobs={jobs}")


def test_the_limit_of_an_account_in_the_middle_of_a_chain(place: Place) -> None:
    limit(1)
    try:
        refused = place.launch(chain=True)
        assert refused.returncode == 1
        assert "nemo-launcher rerun" in refused.stderr
        (job,) = re.findall(r"already queued: job (\d+)", refused.stderr)
        assert [j["state"] for j in place.jobs()][1] == "not started"
        full = place.launch("adapter_learning.run.results_dir=" + str(place.root / "other"))
        assert full.returncode in (1, 2)
    finally:
        limit(-1)
    (second,) = place.submit(chain=True)
    assert f"afterok:{job}" in details(second)
    assert place.jobs()[1]["reason"] == f"Dependency: afterok:{job}"
    place.open_gate()
    wait_for_end(job, second)
    assert [j["state"] for j in place.jobs()] == ["completed"] * 2
    again = place.launch(chain=True)
    assert (again.returncode, again.stdout.count("is complete")) == (0, 2)


@pytest.mark.parametrize(
    "wrong",
    ["qos=none", "partition=closed", "reservation=none", "gres=gpu:99", "mem=999999G", "cpus_per_task=999"],
)
def test_what_sbatch_refuses_is_told_before_anything_is_written(wrong: str, place: Place) -> None:
    refused = place.launch(f"cluster.{wrong}", "preflight=error", chain=True)
    assert refused.returncode == 2, refused.stdout
    assert "sbatch rejects the job" in refused.stderr
    assert not place.results.exists()


def test_the_time_limit_ends_a_job_with_its_state_saved(place: Place) -> None:
    """After two TERMs and a KILL, what a training saved in the grace period is kept; `status` reports the reason."""
    (job,) = place.submit("adapter_learning.run.time_limit='00:01:00'", "cluster.signal=null", "cluster.requeue=False")
    place.said(job, "saved on SIGTERM")
    wait_for_end(job)
    assert [(j["state"], j["exit_status"]) for j in place.jobs()] == [("timeout", 143)]
    place.open_gate()
    again = console("rerun", place.folder)
    (job,) = re.findall(r"submitted as job (\d+)", again.stdout)
    place.said(job, "resuming")
    wait_for_end(job)
    assert [j["state"] for j in place.jobs()] == ["completed"]
