# SPDX-License-Identifier: Apache-2.0
"""Time limits: of a run, of a start, and a limit that no step fits into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import (
    clock,
    last_of,
    summary_of,
    train,
)

pytestmark = pytest.mark.integration


def test_the_time_of_a_run_ends_it_with_the_status_that_requeues(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"exp_manager.max_time_per_run": "00:00:00:01"}
    job = train(tiny_base, data, tmp_path, changes, (clock, 1.0))
    assert job.status == 75, job.output
    assert f"max_time_per_run=00:00:00:01: stopped after step 1; checkpoint {last_of(tmp_path)}" in job.output
    assert "adapter written" not in job.output
    assert not (tmp_path / "results/training_summary.json").exists()
    job = train(tiny_base, data, tmp_path, changes, (clock, 1.0))
    assert (job.status, "stopped after step 2" in job.output) == (75, True), job.output


def test_each_start_has_its_whole_time_and_the_smaller_limit_counts(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Requeued repeatedly, a training with trainer.max_time finishes."""
    changes = {"trainer.max_time": "00:00:00:01", "exp_manager.max_time_per_run": "01:00:00"}
    for step in (1, 2):
        job = train(tiny_base, data, tmp_path, changes | {"trainer.max_epochs": 1}, (clock, 1.0))
        assert (job.status, f"trainer.max_time=00:00:00:01: stopped after step {step}" in job.output) == (75, True)
    assert train(tiny_base, data, tmp_path, changes | {"trainer.max_epochs": 1}, (clock, 0.0)).status == 0
    assert summary_of(tmp_path)["steps"] == 4


def test_time_that_is_too_short_for_a_step_does_not_go_back_into_the_queue(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    changes = {"trainer.max_time": "00:00:00:01", "trainer.max_epochs": 1}
    assert train(tiny_base, data, tmp_path, changes, (clock, 1.0)).status == 75
    job = train(tiny_base, data, tmp_path, changes, (out_of_time,))
    assert job.status == 1
    assert "stopped after step 1; " in job.output
    assert "give it more time" in job.output


def out_of_time() -> None:
    """Make this process believe that an hour has passed when it starts training."""
    from nemo_launcher.training.nemo.time_limit import TimeLimit

    original = TimeLimit.on_train_start

    def begin(self: Any, *args: Any) -> None:
        original(self, *args)
        self._start -= 3600

    TimeLimit.on_train_start = begin
