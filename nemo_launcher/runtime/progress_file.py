# SPDX-License-Identifier: Apache-2.0
"""The progress file of a training job, which `nemo-launcher status` reads."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import finite_or_none, write_json
from nemo_launcher.files.foreign import load_json

PROGRESS_NAME = "progress.json"
"""The file's name, in the folder of training_summary.json."""
SUMMARY_NAME = "training_summary.json"
"""The file that a completed training writes."""
TERMINAL_VARIABLE = "NEMO_LAUNCHER_TERMINAL"
"""Names the terminal that shows a job's progress: the job itself writes to a pipe."""
INTERVAL_SECONDS = 3.0
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class TrainingState:
    """The progress of a training."""

    step: int
    """Completed optimizer steps."""
    max_steps: int
    """Optimizer steps of the whole training."""
    val_loss: float | None
    """The loss of the last validation; None before the first."""
    seconds_left: float | None
    """The estimated time left at `updated`, in seconds; None if unknown."""
    updated: float
    """The time of writing, in seconds since 1970."""


class ProgressFile:
    """Writes the progress of a training every few seconds at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = float("-inf")

    def write(self, step: int, max_steps: int, val_loss: float | None, seconds_left: float | None) -> None:
        """Replace the file's content. A write error is ignored: it must not end a training."""
        state = TrainingState(step, max_steps, val_loss, seconds_left, time.time())
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            write_json(self.path, finite_or_none(asdict(state)))

    def is_due(self) -> bool:
        """Return whether the last state is old enough to be replaced."""
        return time.monotonic() - self._written >= INTERVAL_SECONDS


def load_progress(path: Path) -> TrainingState | None:
    """Return the last state that was written, or None without a file. Raises UserError for other content.

    Implausibly large numbers are refused: they would break the columns of a table.
    """
    if not path.exists():
        return None
    values = load_json(path)
    if not isinstance(values, dict):
        raise UserError(Problem(str(path), "is not the progress of a training"))
    found: dict[str, Any] = {field.name: values.get(field.name) for field in fields(TrainingState)}
    steps = [found["step"], found["max_steps"]]
    numbers = [found[name] for name in ("val_loss", "seconds_left") if found[name] is not None]
    if not (all(type(n) is int and abs(n) <= MAX_NUMBER for n in steps) and all(map(_is_number, numbers))):
        raise UserError(Problem(str(path), "is not the progress of a training"))
    if not _is_number(found["updated"]):
        raise UserError(Problem(str(path), "is not the progress of a training"))
    return TrainingState(**found)


def load_summary(path: Path, key: str = "training_summary_path") -> dict[str, object]:
    """Return the content of a training_summary.json. Raises UserError for any other file.

    key: the configuration key of the path, for the error.
    """
    values = load_json(path)
    flat = isinstance(values, dict) and not any(isinstance(value, dict | list) for value in values.values())
    if flat and type(values.get("trainable_parameters")) is int:
        return dict(values)
    beside = path.with_name(SUMMARY_NAME)
    named = f"{key}={beside}" if beside != path and beside.is_file() else f"give the path of a {SUMMARY_NAME}"
    raise UserError(Problem(str(path), "is not the summary of a training", f"{named}; or for none: {key}=null"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def read_progress(path: Path) -> TrainingState | None:
    """Return the last state that was written; None if there is no readable one."""
    try:
        return load_progress(path)
    except (OSError, UserError):
        return None


def duration(seconds: float) -> str:
    """Return seconds as [h:]mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
