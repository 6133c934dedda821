# SPDX-License-Identifier: Apache-2.0
"""Trainings killed by SIGKILL continue after a restart as if they had not been killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.families.base import load_base
from nemo_launcher.runtime.row_costs import RowCosts
from tests.jobs import Job
from tests.training.runs import (
    adapter_of,
    assert_same_outcome,
    kill_at_step,
    last_checkpoint_of,
    names_in,
    summary_of,
    train,
)

pytestmark = pytest.mark.integration


def kill_while_saving(step: int) -> None:
    """Kill this process with SIGKILL when half of this step's `-last` checkpoint is written."""
    from lightning.pytorch import Trainer

    original = Trainer.save_checkpoint

    def save_checkpoint(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        original(self, filepath, *args, **kwargs)
        if self.global_step == step and str(filepath).endswith("-last.ckpt"):
            os.truncate(filepath, os.path.getsize(filepath) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.save_checkpoint = save_checkpoint


def resumed(base: Path, data: Path, folder: Path, kill: tuple, changes: Mapping[str, Any] | None = None) -> Job:
    """Run a job that is killed, then the same job again; return the second result."""
    killed = train(base, data, folder, changes, kill)
    assert killed.status == -signal.SIGKILL, killed.output
    job = train(base, data, folder, changes)
    assert job.status == 0, job.output
    return job


@pytest.mark.parametrize(
    ("kill", "goes_on_at"),
    [
        pytest.param((kill_at_step, 3), 2, id="in_the_first_epoch"),
        pytest.param((kill_at_step, 4), 4, id="between_epochs"),
        pytest.param((kill_at_step, 7), 6, id="in_the_second_epoch"),
        pytest.param((kill_while_saving, 4), 4, id="while_saving"),
    ],
)
def test_a_killed_job_goes_on_as_if_nothing_had_happened(
    kill: tuple, goes_on_at: int, finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    job = resumed(tiny_base, data, tmp_path, kill)
    assert f"resuming at step {goes_on_at} " in job.output
    assert_same_outcome(tmp_path, finished)


def test_a_job_killed_before_its_first_checkpoint_starts_anew(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    job = resumed(tiny_base, data, tmp_path, (kill_at_step, 1))
    assert "resuming" not in job.output
    assert_same_outcome(tmp_path, finished)


def test_adapter_dropout_goes_on_where_it_was(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"model.adapter_tuning.adapter_dropout": 0.1}
    job = train(tiny_base, data, tmp_path / "whole", changes)
    assert job.status == 0, job.output
    resumed(tiny_base, data, tmp_path / "killed", (kill_at_step, 3), changes)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def test_depth_first_execution_goes_on_where_it_was(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"model.data.traversal": "depth", "model.micro_batch_size": 1}
    changes |= {"model.adapter_tuning.adapter_dropout": 0.1}
    whole = train(tiny_base, data, tmp_path / "whole", changes, (count_rows,))
    assert whole.status == 0, whole.output
    assert "row of depth 2" in whole.output
    resumed(tiny_base, data, tmp_path / "killed", (kill_at_step, 3), changes)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def count_rows() -> None:
    """Print the depth of each row that is executed depth-first."""
    from nemo_launcher.training import depth_first

    original = depth_first.run_row

    def run_row(model: Any, row: Any, path: Any) -> Any:
        print(f"row of depth {len(path.above) + 1}", flush=True)
        return original(model, row, path)

    depth_first.run_row = run_row


def test_a_resumed_job_cuts_rows_by_the_costs_that_it_began_with(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """On another machine others would be measured, and the last digits of the results would differ."""
    changes = {"model.data.layout": "auto"}
    killed = train(tiny_base, data, tmp_path, changes, (measure, 1.0, 3))
    assert killed.status == -signal.SIGKILL, killed.output
    assert train(tiny_base, data, tmp_path, changes, (measure, 2.0)).status == 0
    assert last_checkpoint_of(tmp_path)["row_costs"] == RowCosts((16, 64), {1: (1.0, 2.0)}).as_dict()


def measure(seconds: float, killed_at: int | None = None) -> None:
    """Replace the measured cost of a row of 16 tokens, in this process and without what others measured."""
    import tempfile

    from nemo_launcher.training import calibration

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=os.environ["XDG_CACHE_HOME"])
    costs = RowCosts((16, 64), {1: (seconds, 2 * seconds)})
    calibration.measured_costs = lambda *_: costs
    calibration._WORTH_TOKENS = 0
    if killed_at is not None:
        kill_at_step(killed_at)


def test_a_killed_job_leaves_a_whole_adapter(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Also after the second kill."""
    for _ in range(2):
        killed = train(tiny_base, data, tmp_path, interfere=(kill_at_step, 3))
        assert killed.status == -signal.SIGKILL
        load_adapter(tmp_path / "results/adapter.nemo", load_base(tiny_base))


# --- again and again ------------------------------------------------------------------------------------------------


EVENTS_BEFORE_KILL = 17
"""Of `killing`, in each start: enough for a step and its checkpoint, and few enough to vary the place."""


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's (step, value) pairs of each metric."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "results"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "hp_metric"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def killing(after: int) -> None:
    """Kill this process with SIGKILL around its `after`th step, validation batch, export, checkpoint or summary."""
    from nemo_launcher.training import run
    from nemo_launcher.training.nemo import checkpointing, model

    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count()
            result = original(*args, **kwargs)
            count()
            return result

        setattr(owner, name, wrapper)

    for name in ("training_step", "validation_step", "export"):
        counted(model.AdapterLearningModel, name)
    counted(checkpointing, "write_checkpoint")
    counted(checkpointing.PlainCheckpointIO, "remove_checkpoint")
    counted(run, "write_json")


CADENCES: dict[str, dict[str, Any]] = {
    "each_step": {"trainer.val_check_interval": 1, "exp_manager.checkpoint_callback_params.save_top_k": 2},
    "by_steps": {
        "trainer.max_epochs": -1,
        "trainer.max_steps": 7,
        "trainer.val_check_interval": 1.0,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": 1,
        "model.adapter_tuning.adapter_dropout": 0.1,
    },
}


@pytest.mark.parametrize("cadence", CADENCES)
def test_killed_again_and_again_it_ends_as_an_undisturbed_one(
    cadence: str, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Adapter, checkpoints, logged metrics and summary are equal if each start is killed after a few events."""
    changes = CADENCES[cadence] | {"exp_manager.create_tensorboard_logger": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(tiny_base, data, whole, changes).status == 0
    for start in range(20):
        job = train(tiny_base, data, killed, changes, (killing, EVENTS_BEFORE_KILL + start))
        if job.status != -signal.SIGKILL:
            break
    assert start > 2
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(killed), adapter_of(whole), rtol=0, atol=0)
    assert names_in(killed) == names_in(whole)
    assert logged(killed) == logged(whole)
    for key in ("steps", "best_val_loss"):
        assert summary_of(killed)[key] == summary_of(whole)[key]
