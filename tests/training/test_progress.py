# SPDX-License-Identifier: Apache-2.0
"""Progress reports of a training job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_launcher.runtime.progress_file import ProgressFile, TrainingState, read_progress
from nemo_launcher.training.nemo.callbacks import TrainingProgress

pytestmark = pytest.mark.unit


def step(path: Path, start: int, **metrics: float) -> TrainingState:
    """Start a training at step `start`, run one step, and return the content of the progress file."""
    trainer: Any = SimpleNamespace(
        is_global_zero=True, global_step=start, ckpt_path="", callback_metrics={"reduced_train_loss": 1.0, **metrics}
    )
    figures = SimpleNamespace(rates=lambda: {"tokens_per_second": 1.0})
    model: Any = SimpleNamespace(total_steps=lambda: 10, figures=figures)
    progress = TrainingProgress(path)
    progress.on_train_start(trainer, model)
    progress.on_train_batch_end(trainer, model)
    state = read_progress(path)
    assert state is not None
    return state


def test_a_resumed_training_keeps_the_last_validation_loss_until_the_next(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    ProgressFile(path).write(5, 10, 2.5, 60.0)
    resumed = step(path, 5)
    assert (resumed.step, resumed.val_loss) == (6, 2.5)
    assert step(path, 6, val_loss=2.0).val_loss == 2.0


def test_a_training_that_begins_afresh_has_no_validation_loss_yet(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    ProgressFile(path).write(5, 10, 2.5, 60.0)
    assert step(path, 0).val_loss is None
    (tmp_path / "new").mkdir()
    assert step(tmp_path / "new/progress.json", 5).val_loss is None


def test_the_bar_ends_with_the_last_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMO_LAUNCHER_PROGRESS", "bar")
    speed: dict[str, float | None] = {"tokens_per_second": None}
    model: Any = SimpleNamespace(total_steps=lambda: 1, figures=SimpleNamespace(rates=lambda: speed))
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, ckpt_path="", sanity_checking=False)
    trainer.callback_metrics = {"reduced_train_loss": 1.0, "val_loss": 2.5}
    progress = TrainingProgress(tmp_path / "progress.json")
    progress.on_train_start(trainer, model)
    progress.on_validation_end(trainer, model)  # before the first step, when no speed is known
    trainer.global_step, speed["tokens_per_second"] = 1, 100.0
    progress.on_train_batch_end(trainer, model)
    trainer.callback_metrics["val_loss"] = 1.5
    progress.on_validation_end(trainer, model)
    progress.on_train_end(trainer, model)
    shown = capsys.readouterr().err
    assert "val_loss=1.500" in shown.rstrip().rpartition("\r")[2]
