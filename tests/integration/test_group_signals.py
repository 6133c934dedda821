# SPDX-License-Identifier: Apache-2.0
"""SIGTERM to a whole process group, as `timeout` and Slurm send it, while a training has data workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.clusters.record import read
from tests.engine import write_squad
from tests.integration.launching import LAPTOP, quoted
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("of_job", [True, False])
def test_a_training_ends_with_one_line_about_its_checkpoint(of_job: bool, tiny_base: Path, tmp_path: Path) -> None:
    """of_job: the group of the job with its script, ranks and workers gets the signal, not the launcher's."""
    data = write_squad(tmp_path / "data")
    model = {
        "language_model_path": quoted(tiny_base),
        "tensor_model_parallel_size": 1,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "data.train_ds": f"[{quoted(data / 'squad_train.jsonl')}]",
        "data.validation_ds": f"[{quoted(data / 'squad_val.jsonl')}]",
        "data.num_workers": 2,
    }
    settings = [*LAPTOP, "trainer.max_epochs=5000", f"run.results_dir={quoted(tmp_path / 'job')}"]
    settings += [f"model.{key}={value}" for key, value in model.items()]
    command = [sys.executable, REPOSITORY / "main.py", "adapter_learning=llama/squad", "cluster_type=interactive"]
    command += [f"adapter_learning.{setting}" for setting in settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    ) as launcher:
        assert launcher.stdout is not None
        lines = []
        for line in launcher.stdout:
            lines.append(line)
            if ": step " in line and not any(": step " in earlier for earlier in lines[:-1]):
                record = read(next((tmp_path / "job").glob("*_job.json")))
                assert record is not None
                assert record.job_id is not None
                os.killpg(int(record.job_id) if of_job else launcher.pid, signal.SIGTERM)
    after = "".join(lines).split(": step ", 1)[1].splitlines()[1:]
    assert launcher.returncode == 128 + signal.SIGTERM, after
    after = [line for line in after if ": step " not in line and not line.startswith("stopping within")]
    assert re.match(r"SIGTERM: stopped after step \d+; checkpoint ", after[0])
    assert re.match(r"adapter_learning: stopped after .* s; its log: ", after[1])
    assert len(after) == 2, after
