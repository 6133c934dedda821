# SPDX-License-Identifier: Apache-2.0
"""What training cost: samples, tokens and seconds."""

from __future__ import annotations

import time

from nemo_launcher.data.batching import GlobalBatch


class TrainingFigures:
    """What training cost so far in this process: samples, tokens and seconds inside training steps."""

    def __init__(self) -> None:
        self.samples = self.sample_tokens = self.computed_tokens = 0
        self.seconds = 0.0

    def add(self, batch: GlobalBatch, *, start: float) -> None:
        """Count one step that began at `start` (time.perf_counter)."""
        self.seconds += time.perf_counter() - start
        self.samples += batch.num_samples
        self.sample_tokens += batch.sample_tokens
        self.computed_tokens += batch.computed_tokens

    def rates(self) -> dict[str, float | None]:
        """Return samples_per_second, tokens_per_second (of the samples) and computed_tokens_per_second (a replica).

        None before the first step.
        """
        counts = {
            "samples_per_second": self.samples,
            "tokens_per_second": self.sample_tokens,
            "computed_tokens_per_second": self.computed_tokens,
        }
        return {name: count / self.seconds if self.seconds > 0 else None for name, count in counts.items()}
