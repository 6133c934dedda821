# SPDX-License-Identifier: Apache-2.0
"""A finished training started again: what it says, makes again and leaves alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from nemo_launcher.jobs.superseded import superseded
from tests.training.runs import (
    adapter_of,
    checkpoints_in,
    files_of,
    kill_at_step,
    last_checkpoint_of,
    last_of,
    moved,
    names_in,
    summary_of,
    train,
)

pytestmark = pytest.mark.integration


def test_a_finished_training_says_so_and_touches_nothing(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    before = files_of(folder / "results")
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert (job.status, job.output) == (
        0,
        f"training is finished: 4 steps; nothing to do, the adapter is {folder}/results/adapter.nemo\n",
    )
    assert files_of(folder / "results") == before


def test_what_a_finished_training_lacks_is_made_again(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    wanted = adapter_of(folder)
    for name in ("adapter.nemo", "training_summary.json"):
        (folder / "results" / name).unlink()
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(folder), wanted, rtol=0, atol=0)
    summary = summary_of(folder)
    assert (summary["steps"], summary["samples_per_second"]) == (4, None)


def test_a_damaged_adapter_of_a_finished_training_is_made_again(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    path = folder / "results/adapter.nemo"
    path.write_bytes(path.read_bytes()[:3000])
    assert train(tiny_base, data, folder, {"trainer.max_epochs": 1}).status == 0
    torch.testing.assert_close(adapter_of(folder), adapter_of(one_epoch), rtol=0, atol=0)


def test_copies_of_checkpoints_that_the_user_made_stay(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    shutil.copy(checkpoints_in(folder)[0], last.with_name("mine.ckpt"))
    shutil.copy(last, last.with_name(last.name.replace("step=4", "step=3")))  # like a leftover of a killed run
    os.utime(last)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    names = names_in(folder)
    assert "mine.ckpt" in names
    assert not any("step=3" in name for name in names)


def test_what_clean_may_remove_of_a_finished_training(finished: Path, tmp_path: Path) -> None:
    folder = moved(finished, tmp_path)
    if not list(folder.glob("*_hydra.yaml")):
        shutil.copy(next(finished.rglob("*.yaml")), folder / "job_hydra.yaml")
    checkpoints = checkpoints_in(folder)[0].parent
    assert superseded(checkpoints) == []
    old = checkpoints / "megatron_gpt_adapter_learn--val_loss=9.000-step=1.ckpt"
    shutil.copy(checkpoints_in(folder)[0], old)
    assert superseded(checkpoints) == [old.name]


@pytest.mark.parametrize("interval", [0.5, 1.0], ids=["in_the_epoch", "at_its_end"])
def test_an_early_stopped_training_stays_stopped(interval: float, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {
        "trainer.val_check_interval": interval,
        "trainer.max_epochs": 4,
        "exp_manager.create_early_stopping_callback": True,
        "exp_manager.early_stopping_callback_params": {"monitor": "val_loss", "patience": 1, "min_delta": 100.0},
    }
    assert train(tiny_base, data, tmp_path, changes).status == 0
    steps = summary_of(tmp_path)["steps"]  # no validation improves the first by 100
    assert steps == (4 if interval == 0.5 else 8)
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0
    assert f"training is finished: {steps} steps (ended by early stopping)" in job.output


def test_fewer_steps_than_are_done_are_refused(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1, "trainer.max_steps": 3})
    assert job.status == 2
    assert "trainer.max_steps: training would end at step 3, but 4 steps are done already" in job.output


def test_raising_max_epochs_goes_on_from_a_finished_run(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    assert last_checkpoint_of(folder)["global_step"] == 8


def test_the_adapter_that_a_training_began_with_may_go(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copy(finished / "results/adapter.nemo", tmp_path / "first.nemo"))
    changes = {"model.restore_path": str(adapter)}
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    assert train(tiny_base, data, kept, changes).status == 0
    assert train(tiny_base, data, gone, changes, (kill_at_step, 5)).status == -signal.SIGKILL
    adapter.unlink()
    job = train(tiny_base, data, gone, changes)
    assert (job.status, "resuming at step 4 " in job.output) == (0, True), job.output
    torch.testing.assert_close(adapter_of(gone), adapter_of(kept), rtol=0, atol=0)


def test_one_wandb_run_over_all_starts(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    changes = {"exp_manager.create_wandb_logger": True, "exp_manager.wandb_logger_kwargs.mode": "offline"}
    ids = []
    for epochs in (2, 3):
        job = train(tiny_base, data, folder, changes | {"trainer.max_epochs": epochs})
        assert job.status == 0, job.output
        ids.append(json.loads((folder / "results/wandb_run.json").read_text())["id"])
    assert ids[0] == ids[1]
    runs = list((folder / "results/wandb").glob(f"offline-run-*-{ids[0]}"))
    assert len(runs) >= 1
    assert len(list((folder / "results/wandb").glob("offline-run-*"))) == len(runs)
