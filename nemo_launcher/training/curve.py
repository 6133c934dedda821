# SPDX-License-Identifier: Apache-2.0
"""The curve of a training: loss and learning rate by step, in a file of bounded size in the results folder."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from nemo_launcher.files.atomic import finite_or_none, write_text
from nemo_launcher.runtime.curve_file import Point, Validation, read_curve

MAX_POINTS = 1000
"""Maximum number of points of each curve. Beyond it, neighbours are merged."""
INTERVAL_SECONDS = 10.0
"""Seconds between two versions of the file."""


class Curve:
    """Collects the points of a training and writes them to `training_curve.jsonl`.

    Each point is the mean over as many steps as keep the number of points below MAX_POINTS. Of two validations, the one
    with the lower loss is kept. A write error is ignored: it must not end a training.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: list[Point] = []
        self.validations: list[Validation] = []
        self._steps_per_point = 1
        self._open: list[tuple[float, float]] = []  # loss and learning rate of the steps since the last point
        self._before = 0.0  # seconds of earlier runs
        self._start = time.perf_counter()
        self._written = time.monotonic()

    def start(self, step: int) -> None:
        """Continue the file's curve up to `step`; with step 0, start a new one."""
        earlier = read_curve(self.path) if step else None
        if earlier is not None:
            self.points = [point for point in earlier.points if point.step <= step]
            self.validations = [value for value in earlier.validations if value.step <= step]
        self._before = max((each.seconds for each in self._lines()), default=0.0)
        self._steps_per_point = max((point.steps for point in self.points), default=1)
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, with those of earlier runs."""
        return self._before + time.perf_counter() - self._start

    def add(self, step: int, loss: float, lr: float) -> None:
        """Add a completed optimizer step: its loss in nats per answer token, and its learning rate."""
        self._open.append((loss, lr))
        if len(self._open) >= self._steps_per_point:
            self._close(step)
        if time.monotonic() - self._written >= INTERVAL_SECONDS:
            self.write()

    def add_validation(self, step: int, loss: float, metrics: Mapping[str, float] = MappingProxyType({})) -> None:
        """Add a validation after `step`: its loss in nats per answer token, and its metrics by logged name."""
        self.validations.append(Validation(step, loss, self.seconds, metrics))
        if len(self.validations) > MAX_POINTS:
            pairs = zip(self.validations[::2], self.validations[1::2], strict=False)
            rest = self.validations[len(self.validations) // 2 * 2 :]
            self.validations = [min(pair, key=lambda each: each.val_loss) for pair in pairs] + rest

    def end(self, step: int) -> None:
        """Write the file, with the steps since the last point."""
        if self._open:
            self._close(step)
        self.write()

    def write(self) -> None:
        """Replace the file's content."""
        self._written = time.monotonic()
        text = "".join(json.dumps(finite_or_none(each.as_json()), allow_nan=False) + "\n" for each in self._lines())
        with contextlib.suppress(OSError):
            write_text(self.path, text)

    def _lines(self) -> list[Point | Validation]:
        """Return everything in the order of the steps."""
        return sorted([*self.points, *self.validations], key=lambda each: each.step)

    def _close(self, step: int) -> None:
        losses = [loss for loss, _ in self._open if math.isfinite(loss)]
        mean = sum(losses) / len(losses) if losses else math.nan
        self.points.append(Point(step, len(self._open), mean, self._open[-1][1], self.seconds))
        self._open = []
        if len(self.points) > MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            rest = self.points[len(self.points) // 2 * 2 :]
            self.points = [a.merged(b) for a, b in pairs] + rest
            self._steps_per_point *= 2
