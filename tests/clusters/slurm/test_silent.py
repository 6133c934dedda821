# SPDX-License-Identifier: Apache-2.0
"""Jobs of a Slurm that does not answer."""

from __future__ import annotations

import json

import pytest

from nemo_launcher.clusters.slurm import commands
from tests.clusters.fake_slurm import FakeSlurm
from tests.clusters.slurm.chain import complete, jobs_of, training_of
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.integration


@pytest.fixture
def silent(fake: FakeSlurm, chain: Launch, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm that stops answering after a chain was submitted."""
    assert chain().status == 0
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.5)
    fake.hang("squeue", "sacct")
    return fake


def test_status_asks_once_and_tells_of_the_silence(silent: FakeSlurm, console: Launch, workplace: Workplace) -> None:
    result = console("status", workplace.results)
    assert result.status == 0
    assert "Slurm did not answer" in result.err
    assert {job["state"] for job in jobs_of(console, workplace)} == {"unknown"}
    assert sorted(line.split()[0] for line in silent.hung()) == [
        "sacct",
        "squeue",
    ]  # the second call does not ask again
    complete(workplace)
    assert [job["state"] for job in jobs_of(console, workplace)] == ["completed", "unknown"]


def test_an_exit_status_of_0_alone_is_no_success(silent: FakeSlurm, console: Launch, workplace: Workplace) -> None:
    """srun ends with 0 if its node fails."""
    complete(workplace)
    progress = training_of(workplace) / "results/progress.json"
    progress.write_text(json.dumps({"step": 3, "max_steps": 9, "val_loss": None, "seconds_left": 1.0, "updated": 1.0}))
    job = jobs_of(console, workplace)[0]
    assert (job["state"], "ended after step 3 of 9" in job["reason"]) == ("failed", True)
    (progress.parent / "training_summary.json").write_text("{}")  # a training that ended normally
    assert jobs_of(console, workplace)[0]["state"] == "completed"
    (progress.parent / "megatron_gpt_adapter.nemo").unlink()
    assert jobs_of(console, workplace)[0]["state"] == "failed"


def test_a_job_that_goes_back_into_the_queue_has_not_failed(
    silent: FakeSlurm, console: Launch, workplace: Workplace
) -> None:
    (training_of(workplace) / "squad_gpt3_5b_exit_status").write_text("75\n")
    assert jobs_of(console, workplace)[0]["state"] == "requeued"


def test_cancel_tries_nevertheless(silent: FakeSlurm, console: Launch, workplace: Workplace) -> None:
    result = console("cancel", "--all", "--results-dir", workplace.results)
    assert result.status == 1
    assert "whether job 101, 102 waits or runs is unknown; trying scancel" in result.err
    assert (silent.root / "jobs/102").read_text() == "CANCELLED\n"
    silent.hang("scancel")
    commands.ORDER_TIMEOUT_S, before = 0.5, commands.ORDER_TIMEOUT_S
    try:
        assert "does not answer" in console("cancel", "--all", "--results-dir", workplace.results).err
    finally:
        commands.ORDER_TIMEOUT_S = before


def test_nothing_is_started_beside_a_job_that_may_run(
    silent: FakeSlurm, console: Launch, chain: Launch, workplace: Workplace
) -> None:
    again = console("rerun", training_of(workplace))
    assert (again.status, "Slurm did not answer" in again.err) == (2, True)
    launched = chain()
    assert (launched.status, "Slurm did not answer" in launched.err) == (2, True)
    assert len(silent.submitted()) == 2
    assert console("rerun", training_of(workplace), "--force").status == 0
    assert len(silent.submitted()) == 3
