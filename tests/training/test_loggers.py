# SPDX-License-Identifier: Apache-2.0
"""The loggers that exp_manager turns on, and their files."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_launcher.config.sections import exp_manager as sections
from nemo_launcher.errors import UserError
from nemo_launcher.training.nemo import experiment
from nemo_launcher.training.nemo.experiment import add_loggers

pytestmark = pytest.mark.unit


def loggers_of(results: Path, *, step: int = 0, **changes: Any) -> list[Any]:
    section = sections.ExpManager(
        explicit_log_dir=str(results), checkpoint_callback_params=sections.CheckpointCallback(), **changes
    )
    trainer: Any = SimpleNamespace(loggers=None, is_global_zero=True)
    start: Any = SimpleNamespace(step=step, path=results / "x.ckpt" if step else None)
    add_loggers(trainer, section, start)
    return list(trainer.loggers)


def test_a_resumed_training_keeps_the_csv_file_of_the_earlier_run(tmp_path: Path) -> None:
    for step in (0, 5):
        (logger,) = loggers_of(tmp_path, step=step, create_csv_logger=True)
        logger.log_metrics({"val_loss": 1.5 - step / 10}, step=step + 1)
        logger.save()
    rows = [list(csv.DictReader((tmp_path / f"csv/from_step_{step}/metrics.csv").open())) for step in (0, 5)]
    assert rows == [[{"step": "1", "val_loss": "1.5"}], [{"step": "6", "val_loss": "1.0"}]]


def test_mlflow_gets_nemos_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(experiment, "MLFlowLogger", lambda **options: taken.append(options) or "logger")
    chosen = sections.MlflowLogger(experiment_name="tasks", run_name="one")
    assert loggers_of(tmp_path, create_mlflow_logger=True, mlflow_logger_kwargs=chosen) == ["logger"]
    assert taken == [{"save_dir": str(tmp_path / "mlruns"), "experiment_name": "tasks", "run_name": "one"}]


def test_without_mlflow_the_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(**options: Any) -> None:
        raise ModuleNotFoundError("mlflow")

    monkeypatch.setattr(experiment, "MLFlowLogger", absent)
    with pytest.raises(UserError, match="mlflow is not installed"):
        loggers_of(tmp_path, create_mlflow_logger=True)
