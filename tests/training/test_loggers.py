# SPDX-License-Identifier: Apache-2.0
"""The loggers that exp_manager turns on, and their files."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_launcher.config.sections import exp_manager as sections
from nemo_launcher.errors import UserError
from nemo_launcher.training.nemo import experiment
from nemo_launcher.training.nemo.experiment import add_loggers
from tests.jobs import job_config, loaded
from tests.training.runs import train


def loggers_of(results: Path, *, step: int = 0, **changes: Any) -> list[Any]:
    section = sections.ExpManager(
        explicit_log_dir=str(results), checkpoint_callback_params=sections.CheckpointCallback(), **changes
    )
    trainer: Any = SimpleNamespace(loggers=None, is_global_zero=True)
    start: Any = SimpleNamespace(step=step, path=results / "x.ckpt" if step else None)
    add_loggers(trainer, section, start)
    return list(trainer.loggers)


@pytest.mark.unit
def test_a_resumed_training_keeps_the_csv_file_of_the_earlier_run(tmp_path: Path) -> None:
    for step in (0, 5):
        (logger,) = loggers_of(tmp_path, step=step, create_csv_logger=True)
        logger.log_metrics({"val_loss": 1.5 - step / 10}, step=step + 1)
        logger.save()
    rows = [list(csv.DictReader((tmp_path / f"csv/from_step_{step}/metrics.csv").open())) for step in (0, 5)]
    assert rows == [[{"step": "1", "val_loss": "1.5"}], [{"step": "6", "val_loss": "1.0"}]]


@pytest.mark.unit
def test_mlflow_gets_nemos_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(experiment, "MLFlowLogger", lambda **options: taken.append(options) or "logger")
    chosen = sections.MlflowLogger(experiment_name="tasks", run_name="one")
    assert loggers_of(tmp_path, create_mlflow_logger=True, mlflow_logger_kwargs=chosen) == ["logger"]
    assert taken == [{"save_dir": str(tmp_path / "mlruns"), "experiment_name": "tasks", "run_name": "one"}]


def without_the_libraries() -> None:
    """Make wandb and mlflow absent in this process."""
    sys.modules.update(dict.fromkeys(("wandb", "mlflow")))  # None is what Python takes for an absent module


@pytest.mark.integration
def test_a_job_without_the_loggers_libraries_says_so(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    keys = [f"exp_manager.create_{name}_logger" for name in ("wandb", "mlflow")]
    job = train(tiny_base, data, tmp_path, dict.fromkeys(keys, True), (without_the_libraries,))
    assert job.status == 2
    for name, key in zip(("wandb", "mlflow"), keys, strict=True):
        assert f"{key}: {name} is not installed\n    -> pip install {name}, or {key}=False" in job.output
    assert "Traceback" not in job.output
    assert "loading the base model" not in job.output


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "switch"),
    [("csv", "create_csv_logger"), ("wandb", "create_wandb_logger"), ("mlruns", "create_mlflow_logger")],
)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_in_the_place_of_a_folder_is_told_before_the_training(
    name: str, switch: str, kind: str, tmp_path: Path
) -> None:
    if kind == "file":
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=f"{tmp_path / name}: is a .* in the place of a logger's folder"):
        loggers_of(tmp_path, **{switch: True})


@pytest.mark.unit
def test_tensorboard_gets_the_options_that_are_set(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = sections.SummaryWriter(max_queue=1, flush_secs=1, filename_suffix=".mine", sub_dir="board", prefix="a")
    for step in (0, 5):
        (logger,) = loggers_of(tmp_path, step=step, create_tensorboard_logger=True, summary_writer_kwargs=chosen)
        for offset in (1, 2):
            logger.log_metrics({"loss": 10.0 * step + offset}, step=max(1, step - 1) + offset)
        logger.finalize("success")
    files = sorted(path.name for path in (tmp_path / "board").glob("events.out.tfevents.*"))
    assert len(files) == 2
    assert all(name.endswith(".mine") for name in files)
    events = EventAccumulator(str(tmp_path / "board")).Reload().Scalars("a-loss")
    assert [(event.step, event.value) for event in events] == [(2, 1.0), (3, 2.0), (5, 51.0), (6, 52.0)]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nonsense", 1),
        ("log_dir", "/elsewhere"),
        ("max_queue", "many"),
        ("flush_secs", 0),
        ("filename_suffix", "/../x"),
        ("sub_dir", ".."),
        ("purge_step", -1),
    ],
)
def test_wrong_options_of_tensorboard_are_refused(key: str, value: object, tmp_path: Path) -> None:
    config = job_config(tmp_path / "base.nemo", tmp_path, tmp_path, {"exp_manager.summary_writer_kwargs": {key: value}})
    with pytest.raises(UserError, match=f"exp_manager.summary_writer_kwargs.{key}"):
        loaded(config)
