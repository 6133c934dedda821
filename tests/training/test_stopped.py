# SPDX-License-Identifier: Apache-2.0
"""Trainings that end before their last step: signals, time limits, non-finite values, a damaged base."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.errors import UserError
from nemo_launcher.training.checkpoint_file import read_checkpoint, write_checkpoint
from nemo_launcher.training.data_workers import report_dead_workers
from tests.jobs import job_config
from tests.training.runs import (
    adapter_of,
    assert_same_outcome,
    kill_at_step,
    last_of,
    moved,
    names_in,
    signal_in_step,
    summary_of,
    train,
)
from tests.world import run_job

pytestmark = pytest.mark.integration


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["USR1", "TERM", "INT"],
)
def test_a_signal_stops_with_a_checkpoint_and_the_job_goes_on_from_it(
    number: int, status: int, finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    stopped = train(tiny_base, data, tmp_path, interfere=(signal_in_step, number, 3))
    assert stopped.status == status, stopped.output
    assert "stopped after step 3; checkpoint" in stopped.output
    assert "Traceback" not in stopped.output
    job = train(tiny_base, data, tmp_path)
    assert job.status == 0, job.output
    assert "resuming at step 3 " in job.output
    assert_same_outcome(tmp_path, finished)


def signal_while_loading(*numbers: int) -> None:
    """Send this process signals while the base is loaded."""
    import nemo_launcher.training.run as run

    original = run.load_base

    def load_base(*args: Any, **kwargs: Any) -> Any:
        for number in numbers:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    run.load_base = load_base


def test_a_warning_while_the_base_is_loaded_is_acted_upon_before_the_first_step(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    early = (signal_while_loading, signal.SIGUSR1)
    first = train(tiny_base, data, tmp_path, interfere=early)
    assert (first.status, "USR1: stopped after step 0" in first.output) == (75, True), first.output
    second = train(tiny_base, data, tmp_path, interfere=early)
    assert (second.status, "two starts did not complete a single step" in second.output) == (1, True), second.output
    assert train(tiny_base, data, tmp_path, interfere=(signal_in_step, signal.SIGUSR1, 3)).status == 75
    third = train(tiny_base, data, tmp_path, interfere=early)
    assert (third.status, "stopped after step 3; checkpoint" in third.output) == (75, True), third.output
    assert train(tiny_base, data, tmp_path).status == 0
    assert_same_outcome(tmp_path, finished)


def test_term_while_the_base_is_loaded_ends_at_once(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, interfere=(signal_while_loading, signal.SIGTERM, signal.SIGTERM))
    assert (job.status, "TERM: stopped" in job.output, "Traceback" in job.output) == (143, True, False), job.output


def signal_again_while_saving(number: int, step: int) -> None:
    """Send this process a signal in a step, and again while its checkpoint is written."""
    from lightning.pytorch import Trainer

    signal_in_step(number, step)
    original = Trainer.save_checkpoint

    def save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.global_step == step:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    Trainer.save_checkpoint = save_checkpoint


def test_a_second_term_does_not_disturb_the_checkpoint(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    stopped = train(tiny_base, data, tmp_path, interfere=(signal_again_while_saving, signal.SIGTERM, 3))
    assert (stopped.status, "stopped after step 3; checkpoint" in stopped.output) == (143, True), stopped.output
    assert "resuming at step 3 " in train(tiny_base, data, tmp_path).output
    assert_same_outcome(tmp_path, finished)


def stop_in_validation() -> None:
    """Send this process SIGUSR1 at the start of its last validation."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.on_validation_epoch_start

    def begin(self: Any) -> None:
        if not self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self)

    AdapterLearningModel.on_validation_epoch_start = begin


def test_a_validation_that_a_stop_left_out_is_done_first(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Stopped in the last validation, after the last step: no training remains, but everything that follows is done."""
    changes = {"trainer.max_epochs": 1, "trainer.val_check_interval": 1.0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(tiny_base, data, whole, changes).status == 0
    assert train(tiny_base, data, stopped, changes, (stop_in_validation,)).status == 75
    assert not (stopped / "results/adapter.nemo").exists()
    job = train(tiny_base, data, stopped, changes)
    assert job.status == 0, job.output
    assert "resuming at step 4 " in job.output
    torch.testing.assert_close(adapter_of(stopped), adapter_of(whole), rtol=0, atol=0)
    assert names_in(stopped) == names_in(whole)


# --- figures that are not finite, a base that is cut short -------------------------------------------------------


def spoil_weights(step: int) -> None:
    """Set a weight of this process's adapter to NaN after this optimizer step (from 1)."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.on_train_batch_end

    def on_train_batch_end(self: Any, *args: Any) -> None:
        original(self, *args)
        if self.trainer.global_step == step:
            self.adapters.parameters()[0].data.fill_(float("nan"))

    AdapterLearningModel.on_train_batch_end = on_train_batch_end


def test_a_loss_that_is_not_finite_keeps_what_was_there(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    adapter, names = (folder / "results/adapter.nemo").read_bytes(), names_in(folder)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2}, (spoil_weights, 5))
    assert job.status == 2
    assert f"training, step 6: the loss is nan; training stops, {last_of(folder)} and " in job.output
    assert f"{folder}/results/adapter.nemo remain unchanged" in job.output
    assert "lower model.optim.lr" in job.output
    assert "Traceback" not in job.output
    assert ((folder / "results/adapter.nemo").read_bytes(), names_in(folder)) == (adapter, names)


def test_nothing_is_said_to_be_kept_where_nothing_is_saved(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.optim.lr": 1e30, "model.optim.sched.warmup_steps": 0})
    assert job.status == 2
    assert "training stops, and nothing is saved yet" in job.output
    assert not list((tmp_path / "results").rglob("*.ckpt"))


def cut_short(path: str) -> None:
    """Truncate a file in place when this process starts its third step."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 2:
            os.truncate(path, 20_000)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def test_a_base_that_is_cut_short_in_use_is_named(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    base = Path(shutil.copy(tiny_base, tmp_path / "base.nemo"))
    job = train(base, data, tmp_path / "job", {}, (cut_short, str(base)))
    assert job.status == 2
    assert f"{base}: was truncated while in use" in job.output


def test_what_is_done_is_saved_at_a_stop_without_save_last_too(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """The file is deleted when training has finished, which the next start still knows."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"trainer.max_epochs": 1, "exp_manager.checkpoint_callback_params.save_last": False}
    assert train(tiny_base, data, whole, changes).status == 0
    job = train(tiny_base, data, stopped, changes, (signal_in_step, signal.SIGTERM, 3))
    assert f"stopped after step 3; checkpoint {last_of(stopped)}" in job.output
    assert "resuming at step 3 " in train(tiny_base, data, stopped, changes).output
    assert names_in(stopped) == names_in(whole)
    torch.testing.assert_close(adapter_of(stopped), adapter_of(whole), rtol=0, atol=0)
    assert "training is finished: 4 steps" in train(tiny_base, data, stopped, changes).output


def test_weights_that_are_not_the_best_are_not_called_so(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path):
    """Only the last checkpoint was copied, and no later validation is better."""
    folder = tmp_path / "job"
    (folder / "results/checkpoints").mkdir(parents=True)
    content = read_checkpoint(last_of(one_epoch))
    content["best_val_loss"] = 0.125
    content["callbacks"]["AdapterCheckpoint"]["best_model_path"] = "/absent/best.ckpt"
    content["callbacks"]["AdapterCheckpoint"]["best_k_models"] = {}
    write_checkpoint(folder / "results/checkpoints/mine.ckpt", content)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    assert "the best weights (val_loss 0.1250) no longer exist: the adapter is that of step 4" in job.output
    assert summary_of(folder)["best_val_loss"] is None


# --- one of several ---------------------------------------------------------------------------------------------------


def kill_rank(number: int) -> None:
    """Kill this rank, one of several, with SIGKILL at the start of its third step."""
    if os.environ["RANK"] == str(number):
        kill_at_step(2)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_peer_is_killed_says_so(killed: int, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, data, tmp_path, {"trainer.devices": 2})
    jobs = run_job(2, "train", config, tmp_path, kill_rank, killed)
    assert [job.status for job in jobs] == ([-9, 1] if killed == 0 else [1, -9])
    output = jobs[1 - killed].output
    assert "another rank has ended, and this one with it" in output
    assert "Traceback" not in output


def test_a_process_that_prepares_batches_and_died_is_named() -> None:
    dead = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    told = r"model.data.num_workers: a process .* \(DataLoader worker .*\); training stops, kept\n.*num_workers=0"
    with pytest.raises(UserError, match=told), report_dead_workers(lambda: "kept"):
        raise dead
    with pytest.raises(RuntimeError, match="another"), report_dead_workers(lambda: "kept"):
        raise RuntimeError("another")
