# SPDX-License-Identifier: Apache-2.0
"""A training on a mixture of tasks that is killed in an epoch continues with the same samples."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.engine import squad_records, write_jsonl
from tests.jobs import job_config
from tests.training.runs import assert_same_outcome, kill_at_step, train

pytestmark = pytest.mark.integration


def test_a_killed_training_sees_the_same_mixture(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    records = [
        record | ({"taskname": "other"} if number < 4 else {}) for number, record in enumerate(squad_records(16))
    ]
    (template,) = job_config(tiny_base, data, tmp_path)["model"]["task_templates"]
    changes = {
        "model.data.train_ds": [str(write_jsonl(tmp_path / "mixed.jsonl", records))],
        "model.task_templates": [template, template | {"taskname": "other"}],
        "model.data.mixture": {"weights": {"squad": 1, "other": 1}},
    }
    whole = train(tiny_base, data, tmp_path / "whole", changes)
    assert whole.status == 0, whole.output
    assert "mixture of each epoch: other 50.0% (8 of 4 samples), squad 50.0% (8 of 12 samples)" in whole.output
    assert train(tiny_base, data, tmp_path / "killed", changes, (kill_at_step, 3)).status == -signal.SIGKILL
    resumed = train(tiny_base, data, tmp_path / "killed", changes)
    assert resumed.status == 0, resumed.output
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")
    changed = train(
        tiny_base, data, tmp_path / "killed", changes | {"model.data.mixture": None, "trainer.max_epochs": 3}
    )
    assert changed.status == 2
    assert "model.data.mixture" in changed.output
