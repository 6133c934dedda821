# SPDX-License-Identifier: Apache-2.0
"""Throughput of a training, and the loss of a validation."""

from __future__ import annotations

import time

from nemo_launcher.data.batching import GlobalBatch


class TrainingFigures:
    """Samples, tokens and seconds spent in the training steps of this process."""

    def __init__(self) -> None:
        self.samples = self.sample_tokens = self.computed_tokens = 0
        self.seconds = 0.0

    def add(self, batch: GlobalBatch, *, start: float) -> None:
        """Add a step that started at `start` (time.perf_counter)."""
        self.seconds += time.perf_counter() - start
        self.samples += batch.num_samples
        self.sample_tokens += batch.sample_tokens
        self.computed_tokens += batch.computed_tokens

    def rates(self) -> dict[str, float | None]:
        """Return samples_per_second, tokens_per_second (of the samples) and computed_tokens_per_second (per replica).

        The values are None before the first step.
        """
        counts = {
            "samples_per_second": self.samples,
            "tokens_per_second": self.sample_tokens,
            "computed_tokens_per_second": self.computed_tokens,
        }
        return {name: count / self.seconds if self.seconds > 0 else None for name, count in counts.items()}

    def summary(self) -> dict[str, float | None]:
        """Return the rates and training_seconds, the time of the steps."""
        return {**self.rates(), "training_seconds": self.seconds}


class ValidationLoss:
    """Accumulates the loss of a validation, batch by batch."""

    def __init__(self) -> None:
        self._batches: list[tuple[float, int]] = []

    def add(self, loss: float, answer_tokens: int) -> None:
        """Add a batch: its mean loss (nats per answer token) and its number of answer tokens."""
        self._batches.append((loss, answer_tokens))

    def take(self, *, nemo_compat: bool) -> float | None:
        """Return the loss and reset: the mean over answer tokens, or with `nemo_compat` over batches, as in NeMo.

        Returns None if there were no batches.
        """
        batches, self._batches = self._batches, []
        if not batches:
            return None
        if nemo_compat:
            return sum(loss for loss, _ in batches) / len(batches)
        return sum(loss * tokens for loss, tokens in batches) / sum(tokens for _, tokens in batches)
