# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of Lightning that training depends on: its loops, which resume differently here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.tuner.lr_finder import _ExponentialLR, _LRCallback, _LRFinder

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


def calls_in_order(function: Any, *calls: str) -> bool:
    text = inspect.getsource(function)
    return [text.index(call) for call in calls] == sorted(text.index(call) for call in calls)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)


@leans_on("nemo_launcher/training/nemo/loops.py", "_FitLoop", "_TrainingEpochLoop", "_restarting")
def test_a_trainers_loops_can_be_replaced(trainer: Trainer) -> None:
    """Epochs and steps completed in a checkpoint are neither repeated nor skipped."""
    loop = _FitLoop(trainer, 0, 3)
    loop.epoch_loop = _TrainingEpochLoop(trainer, None, 5)
    trainer.fit_loop = loop
    assert (trainer.max_epochs, trainer.max_steps, trainer.global_step, trainer.current_epoch) == (3, 5, 0, 0)
    assert (loop.restarting, loop._restarting) == (False, False)


@leans_on(
    "nemo_launcher/training/nemo/loops.py", "_batches_that_stepped", "_is_validation_done", "_should_check_val_fx"
)
def test_an_epochs_loop_asks_whether_to_validate_behind_each_step(trainer: Trainer) -> None:
    """A validation missing in a checkpoint is caught up on; `after_step` is called once the step is logged."""
    assert isinstance(inspect.getattr_static(_TrainingEpochLoop, "_is_validation_done"), property)
    assert list(inspect.signature(_TrainingEpochLoop._should_check_val_fx).parameters) == ["self", "data_fetcher"]
    assert "self._is_validation_done" in inspect.getsource(_TrainingEpochLoop.done.fget)
    assert calls_in_order(
        _TrainingEpochLoop.advance, '"on_train_batch_end"', "increment_completed", "update_train_step_metrics"
    )
    assert calls_in_order(
        _TrainingEpochLoop.on_advance_end, "_should_check_val_fx", "val_loop.run", "_batches_that_stepped += 1"
    )
    assert calls_in_order(
        _TrainingEpochLoop.run, "self.reset()", "self.on_run_start", "self.advance", "self.on_advance_end"
    )
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 0


def test_the_counters_of_a_checkpoint_have_these_names(trainer: Trainer) -> None:
    """training.nemo.loops sets them from the position in a checkpoint."""
    state = trainer.fit_loop.state_dict()
    assert {
        "epoch_progress",
        "epoch_loop.batch_progress",
        "epoch_loop.scheduler_progress",
        "epoch_loop.state_dict",
    } <= set(state)
    assert set(state["epoch_progress"]["current"]) == {"ready", "started", "processed", "completed"}
    assert set(state["epoch_loop.batch_progress"]) == {"total", "current", "is_last_batch"}
    assert state["epoch_loop.state_dict"] == {"_batches_that_stepped": 0}
    assert hasattr(trainer.fit_loop.epoch_loop.val_loop, "restarting")


@leans_on("nemo_launcher/training/nemo/range_test.py", "_ExponentialLR", "_LRCallback", "_LRFinder")
def test_the_parts_of_the_range_test() -> None:
    """The callback reads the rate of a step from the schedule, and stops at a loss of four times the best."""
    assert list(inspect.signature(_LRFinder).parameters) == ["mode", "lr_min", "lr_max", "num_training"]
    assert list(inspect.signature(_ExponentialLR).parameters)[:3] == ["optimizer", "end_lr", "num_iter"]
    defaults = {name: each.default for name, each in inspect.signature(_LRCallback).parameters.items()}
    assert defaults["progress_bar_refresh_rate"] == 0
    assert (defaults["early_stop_threshold"], defaults["beta"]) == (4.0, 0.98)
    finder = _LRFinder("exponential", 1e-8, 1.0, 20)
    losses = [5.0] * 14 + [4.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    finder.results = {"lr": [float(place) for place in range(20)], "loss": losses}
    assert finder.suggestion() == 14.0
    finder.results = {"lr": [0.0] * 12, "loss": losses[:12]}
    assert finder.suggestion() is None
