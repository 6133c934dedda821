# SPDX-License-Identifier: Apache-2.0
"""The file with the curve of a training, which its report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import parse_json, read_bytes

CURVE_NAME = "training_curve.jsonl"
"""The file's name, in the folder of training_summary.json."""
_MAX_METRICS, _LONGEST_NAME = 8, 100  # of a line that is read


@dataclass(frozen=True, slots=True)
class Point:
    """Some consecutive steps of a training."""

    step: int
    """The last of them, from 1."""
    steps: int
    """Their number."""
    loss: float
    """Their mean loss, in nats per answer token."""
    lr: float
    """The learning rate of the last."""
    seconds: float
    """Seconds of training up to its end, with validations."""

    def merged(self, other: Point) -> Point:
        """Return this point and its successor as one."""
        steps = self.steps + other.steps
        mean = (self.loss * self.steps + other.loss * other.steps) / steps
        return Point(other.step, steps, mean, other.lr, other.seconds)

    def as_json(self) -> dict[str, object]:
        """Return the line of the file."""
        return {"step": self.step, "steps": self.steps, "loss": self.loss, "lr": self.lr, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation."""

    step: int
    """The number of steps before it."""
    val_loss: float
    """Its loss, in nats per answer token."""
    seconds: float
    """Seconds of training up to its end."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics that checkpoints or early stopping follow, by the name under which they are logged."""

    def as_json(self) -> dict[str, object]:
        """Return the line of the file."""
        return {"step": self.step, "val_loss": self.val_loss, "seconds": self.seconds, **self.metrics}


@dataclass(frozen=True, slots=True)
class CurveContent:
    """The content of the file."""

    points: list[Point] = field(default_factory=list)
    """The steps, in order."""
    validations: list[Validation] = field(default_factory=list)
    """The validations, in order."""


def read_curve(path: Path) -> CurveContent | None:
    """Return the content of a training_curve.jsonl; None without a file. Other lines are skipped."""
    content = CurveContent()
    try:
        lines = read_bytes(path).splitlines()
    except (OSError, UserError):
        return None
    for number, line in enumerate(lines, start=1):
        try:
            values = parse_json(line, str(path), line=number)
        except UserError:
            continue
        if not isinstance(values, dict) or not _is_count(values.get("step")) or not _is_number(values.get("seconds")):
            continue
        step, seconds = int(values["step"]), float(values["seconds"])
        if _is_number(values.get("val_loss")):
            content.validations.append(Validation(step, float(values["val_loss"]), seconds, _metrics(values)))
        elif _is_count(values.get("steps")) and _is_number(values.get("lr")):
            loss = float(values["loss"]) if _is_number(values.get("loss")) else math.nan
            content.points.append(Point(step, int(values["steps"]), loss, float(values["lr"]), seconds))
    return content


def _metrics(values: Mapping[str, object]) -> dict[str, float]:
    """Return the metrics in a line of a validation."""
    names = [name for name in values if name.startswith("val_") and name != "val_loss" and len(name) <= _LONGEST_NAME]
    return {name: float(value) for name in names[:_MAX_METRICS] if _is_number(value := values[name])}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= 2**53
