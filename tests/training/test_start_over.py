# SPDX-License-Identifier: Apache-2.0
"""Trainings that start over: the results of an earlier training are never replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.training.runs import adapter_of, checkpoints_in, clock, files_of, moved, train

pytestmark = pytest.mark.integration

ANEW = {"exp_manager.resume_if_exists": False}


@pytest.mark.parametrize("left", ["checkpoints", "adapter"])
def test_work_is_not_replaced_by_a_training_that_starts_over(
    left: str, one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    for path in checkpoints_in(folder) if left == "adapter" else [folder / "results/training_summary.json"]:
        path.unlink()
    before = files_of(folder / "results")
    job = train(tiny_base, data, folder, ANEW | {"trainer.max_epochs": 1})
    assert job.status == 2
    assert f"exp_manager.resume_if_exists: False would start over and replace what is in {folder}/results" in job.output
    assert ("3 checkpoint(s)" in job.output, "the finished adapter" in job.output) == (
        left == "checkpoints",
        left == "adapter",
    )
    assert "loading the base model" not in job.output
    assert files_of(folder / "results") == before


def test_the_ways_out_of_starting_over_are_accepted(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    assert "resuming at step 4" in train(tiny_base, data, folder, {"trainer.max_epochs": 2}).output
    shutil.rmtree(folder / "results")
    job = train(tiny_base, data, folder, ANEW | {"trainer.max_epochs": 1})
    assert (job.status, "resuming" in job.output) == (0, False)


def test_a_finished_adapter_without_checkpoints_is_not_replaced(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    shutil.rmtree(folder / "results/checkpoints")
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 2
    assert "there is no checkpoint to resume from" in job.output
    assert adapter_of(folder).keys() == adapter_of(one_epoch).keys()


def queued(job_id: int, restart: int, seconds_per_step: float = 0.0) -> None:
    """Make this process one of a Slurm job."""
    os.environ.update(SLURM_JOB_ID=str(job_id), SLURM_RESTART_COUNT=str(restart))
    clock(seconds_per_step)


def test_a_job_that_the_queue_starts_again_goes_on_all_the_same(
    tiny_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ANEW | {"exp_manager.max_time_per_run": "00:00:00:01", "trainer.max_epochs": 1}
    assert train(tiny_base, data, tmp_path, changes, (queued, 7, 0, 1.0)).status == 75
    for job_id, restart in ((8, 1), (7, 0)):  # another job; the same job, started manually in its allocation
        assert train(tiny_base, data, tmp_path, changes, (queued, job_id, restart)).status == 2
    job = train(tiny_base, data, tmp_path, changes, (queued, 7, 1))
    assert job.status == 0, job.output
    assert "this job was requeued: it resumes from" in job.output
    assert "resuming at step 1 " in job.output
