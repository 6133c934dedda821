"""How far a training job is, in a file of its own: the job writes it, `nemo-launcher status` reads it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nemo_launcher.files import finite_or_none, write_json

PROGRESS_NAME = "progress.json"
"""Its name, in the folder of training_summary.json."""
INTERVAL_SECONDS = 3.0


@dataclass(frozen=True)
class TrainingState:
    """val_loss: the last one; seconds_left: as of `updated`, seconds since 1970."""

    step: int
    max_steps: int
    val_loss: float | None
    seconds_left: float | None
    updated: float


class ProgressFile:
    """Writes the state of a training every few seconds at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = float("-inf")

    def write(self, step: int, max_steps: int, val_loss: float | None, seconds_left: float | None) -> None:
        """Replace the file by this state; a disk that does not take it must not end a training."""
        state = TrainingState(step, max_steps, val_loss, seconds_left, time.time())
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            write_json(self.path, finite_or_none(asdict(state)))

    def is_due(self) -> bool:
        """Whether the last state is old enough to be replaced."""
        return time.monotonic() - self._written >= INTERVAL_SECONDS


def read_progress(path: Path) -> TrainingState | None:
    """Return the last state that was written; None when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainingState(**{field.name: values[field.name] for field in fields(TrainingState)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def duration(seconds: float) -> str:
    """Return seconds as [h:]mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
