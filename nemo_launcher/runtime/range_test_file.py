# SPDX-License-Identifier: Apache-2.0
"""`learning_rate_test.json` in a training's results folder: the curve of its learning rate range test, and the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from nemo_launcher.config.automatic import TEST_STEPS
from nemo_launcher.errors import UserError
from nemo_launcher.files.atomic import finite_or_none, write_json
from nemo_launcher.files.foreign import load_json

RANGE_TEST_NAME = "learning_rate_test.json"
"""The file's name, in the folder of training_summary.json."""


@dataclass(frozen=True, slots=True)
class RangeTestContent:
    """The content of the file."""

    learning_rate: float
    """The rate of the training."""
    is_suggestion: bool
    """Whether the test suggested it; otherwise it is that of `auto`."""
    rates: list[float]
    """The learning rate of each step of the test."""
    losses: list[float]
    """The smoothed loss of each step, in nats per answer token; not finite where the training had diverged."""
    training: str
    """What identifies the training (training.record.identity_of)."""

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        values = {name: getattr(self, name) for name in self.__slots__}
        write_json(path, finite_or_none(values))


def read_range_test(path: Path) -> RangeTestContent | None:
    """Return the content of a learning_rate_test.json; None without a readable one."""
    try:
        values = load_json(path)
    except (OSError, UserError):
        return None
    if not isinstance(values, dict):
        return None
    rate, rates, losses = values.get("learning_rate"), _numbers(values.get("rates")), _numbers(values.get("losses"))
    if not _is_number(rate) or not 0 < rate < math.inf or rates is None or losses is None or len(rates) != len(losses):
        return None
    return RangeTestContent(
        float(rate), values.get("is_suggestion") is True, rates, losses, str(values.get("training"))
    )


def _numbers(values: object) -> list[float] | None:
    """Return a list of numbers, NaN for null; None for anything else, and for more than a test has."""
    if not isinstance(values, list) or len(values) > TEST_STEPS:
        return None
    found = [math.nan if value is None else float(value) for value in values if value is None or _is_number(value)]
    return found if len(found) == len(values) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
