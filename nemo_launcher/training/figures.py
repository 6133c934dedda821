# SPDX-License-Identifier: Apache-2.0
"""Throughput of a training, and the loss of a validation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from nemo_launcher.data.batching import GlobalBatch

FALLEN = 0.01
"""The share of the loss before training by which a validation has to be lower, for training to have had an effect."""


Mark = float | torch.cuda.Event
"""A time in seconds, or a place in the work of a GPU, which the host is ahead of."""


def mark(device: torch.device) -> Mark:
    """Return the present time, on a GPU as an event in its work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class TrainingFigures:
    """Samples, tokens and seconds spent in the training steps of this process."""

    def __init__(self) -> None:
        self.samples = self.sample_tokens = self.computed_tokens = 0
        self._seconds = 0.0
        self._unread: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # steps that a GPU may not have ended

    def add(self, batch: GlobalBatch, start: Mark, end: Mark) -> None:
        """Add a step that took from `start` to `end` (mark)."""
        if isinstance(start, float) and isinstance(end, float):
            self._seconds += end - start
        elif not isinstance(start, float) and not isinstance(end, float):
            self._unread.append((start, end))
        self.samples += batch.num_samples
        self.sample_tokens += batch.sample_tokens
        self.computed_tokens += batch.computed_tokens

    @property
    def seconds(self) -> float:
        """The seconds of all steps; waits for the GPU to end the last one."""
        for start, end in self._unread:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1e3
        self._unread = []
        return self._seconds

    def rates(self) -> dict[str, float | None]:
        """Return samples_per_second, tokens_per_second (of the samples) and computed_tokens_per_second (per replica).

        The values are None before the first step.
        """
        counts = {
            "samples_per_second": self.samples,
            "tokens_per_second": self.sample_tokens,
            "computed_tokens_per_second": self.computed_tokens,
        }
        seconds = self.seconds
        return {name: count / seconds if seconds > 0 else None for name, count in counts.items()}

    def summary(self) -> dict[str, float | None]:
        """Return the rates and training_seconds, the time of the steps."""
        return {**self.rates(), "training_seconds": self.seconds}


class ValidationLoss:
    """Accumulates the loss of a validation, batch by batch, and compares it with that before the first step.

    Lightning validates a few batches before training. Later validations start with the same batches, so the comparison
    has no noise from other records.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[torch.Tensor, int]] = []
        self._first: list[tuple[float, int]] = []  # those before training; none if it was resumed
        self._best = math.inf  # of the same batches

    def add(self, loss: torch.Tensor, answer_tokens: int) -> None:
        """Add a batch: its mean loss, [] (nats per answer token), which is not read yet, and its answer tokens."""
        self._batches.append((loss, answer_tokens))

    def take(self, *, nemo_compat: bool, before_training: bool = False) -> float | None:
        """Return the loss and reset: the mean over answer tokens, or with `nemo_compat` over batches, as in NeMo.

        before_training: whether no step was done yet. Returns None if there were no batches.
        """
        batches = [(float(loss), tokens) for loss, tokens in self._batches]
        self._batches = []
        if not batches:
            return None
        if before_training:
            self._first = batches
        elif self._first:
            self._best = min(self._best, _mean(batches[: len(self._first)]))
        if nemo_compat:
            return sum(loss for loss, _ in batches) / len(batches)
        return _mean(batches)

    def not_fallen(self) -> str | None:
        """Return a text about a loss that no validation found to be lower than before training; None if one did."""
        before = _mean(self._first) if self._first else math.inf
        if not math.isfinite(self._best) or self._best < before * (1 - FALLEN):
            return None
        return f"val_loss did not fall: {before:.4f} before training, {self._best:.4f} at best on the same records"


def _mean(batches: Sequence[tuple[float, int]]) -> float:
    """Return the mean loss over answer tokens."""
    return sum(loss * tokens for loss, tokens in batches) / sum(tokens for _, tokens in batches)
