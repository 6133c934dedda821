# SPDX-License-Identifier: Apache-2.0
"""Trainings of the tiny base in separate processes: interference with them, and their outputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.training.checkpoint_file import read_checkpoint
from tests.engine import squad_records, write_jsonl
from tests.jobs import Job, job_config, run_script


def train(base: Path, data: Path, folder: Path, changes: Mapping[str, Any] | None = None, interfere: tuple = ()) -> Job:
    """Run a training job in `folder`; interfere: a function to call first in its process, and its arguments."""
    before, args = (interfere[0], interfere[1:]) if interfere else (None, ())
    return run_script("train", job_config(base, data, folder, changes), folder, before=before, args=args)


def moved(source: Path, tmp_path: Path) -> Path:
    """Return a copy of a job's folder, in which its training continues."""
    return Path(shutil.copytree(source, tmp_path / "job"))


# --- what it leaves -------------------------------------------------------------------------------------------------


def adapter_of(folder: Path) -> dict[str, Any]:
    return read_adapter(folder / "results/adapter.nemo")[1]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results/training_summary.json").read_text())


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted((folder / "results/checkpoints").iterdir())


def names_in(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def last_of(folder: Path) -> Path:
    (last,) = (path for path in checkpoints_in(folder) if path.name.endswith("-last.ckpt"))
    return last


def checkpoints_of(folder: Path) -> dict[str, Any]:
    return {path.name: read_checkpoint(path) for path in checkpoints_in(folder) if path.suffix == ".ckpt"}


def last_checkpoint_of(folder: Path) -> dict[str, Any]:
    return read_checkpoint(last_of(folder))


def val_losses_of(folder: Path) -> dict[int, float]:
    """Return the validation loss of each step with a kept checkpoint."""
    names = [path.name for path in (folder / "results/checkpoints").glob("*.ckpt")]
    found = [re.search(r"val_loss=([\d.]+)-step=(\d+)", name) for name in names]
    return {int(match[2]): float(match[1]) for match in found if match}


def assert_same_outcome(folder: Path, wanted: Path) -> None:
    torch.testing.assert_close(adapter_of(folder), adapter_of(wanted), rtol=0, atol=0)
    mine, theirs = last_checkpoint_of(folder), last_checkpoint_of(wanted)
    torch.testing.assert_close(mine["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    assert mine["global_step"] == theirs["global_step"] == 8
    assert mine["optimizer_states"][0]["param_groups"] == theirs["optimizer_states"][0]["param_groups"]
    assert summary_of(folder)["best_val_loss"] == summary_of(wanted)["best_val_loss"]


# --- interference ---------------------------------------------------------------------------------------------------


def wrong_answers(folder: Path, rate: float) -> dict[str, Any]:
    """Write wrong answers to `folder`; return the changes of a training on them with this learning rate."""
    records = [record | {"answer": "qqq zzz"} for record in squad_records(16)]
    return {"model.data.train_ds": [str(write_jsonl(folder / "wrong.jsonl", records))], "model.optim.lr": rate}


def kill_at_step(step: int) -> None:
    """Kill this process with SIGKILL at the start of this optimizer step (from 0)."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def signal_in_step(number: int, step: int) -> None:
    """Send this process a signal while it computes `step` (from 1)."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step + 1 == step:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def clock(seconds_per_step: float) -> None:
    """Replace the clock of this process's time limits by one that advances only with training steps."""
    from nemo_launcher.training.nemo import time_limit
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step
    seconds = 0.0

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal seconds
        seconds += seconds_per_step
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step
    time_limit.time = SimpleNamespace(monotonic=lambda: seconds)
