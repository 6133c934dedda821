# SPDX-License-Identifier: Apache-2.0
"""The position of a training, stored in checkpoints; all counters follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a training."""

    step: int
    """Completed optimizer steps."""
    validated: bool
    """Whether the validation due after that step, if any, is done."""
    epochs_ended: int
    """Epochs that were ended, including one that max_steps cut short."""
    stopped: str = ""
    """Why training ended before max_epochs and max_steps, such as early stopping; empty if it did not."""

    def as_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return asdict(self)

    def epoch_and_batch(self, batches: int) -> tuple[int, int]:
        """Return the epoch to resume in (0-based) and its number of completed batches.

        batches: the batches of an epoch. If all of them are done, the end of that epoch is still due.
        """
        epoch, batch = divmod(self.step, batches)
        return (epoch - 1, batches) if batch == 0 and self.epochs_ended < epoch else (epoch, batch)
