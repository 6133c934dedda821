# SPDX-License-Identifier: Apache-2.0
"""Where a training stands: what a checkpoint says of it, and all that its counters follow from."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands."""

    step: int
    """Optimizer steps that are done."""
    validated: bool
    """Whether the validation that is due behind that step, if any, is done."""
    epochs_ended: int
    """Epochs whose end is done, with a last one that max_steps cuts short."""
    stopped: str = ""
    """Why training ended ahead of max_epochs and max_steps, such as early stopping; empty: it did not."""

    def as_dict(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    def epoch_and_batch(self, batches: int) -> tuple[int, int]:
        """Return the epoch (0-based) to go on in and how many of its `batches` are done; all: its end is to come."""
        epoch, batch = divmod(self.step, batches)
        return (epoch - 1, batches) if batch == 0 and self.epochs_ended < epoch else (epoch, batch)
