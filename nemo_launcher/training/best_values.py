# SPDX-License-Identifier: Apache-2.0
"""The best figures of a training's validations, of which one decides which adapter is exported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_launcher.config.monitored import VAL_LOSS, logged_name, metric_of
from nemo_launcher.config.sections.exp_manager import ExpManager


@dataclass(slots=True)
class BestValues:
    """The best values so far."""

    monitor: str = VAL_LOSS
    """What decides: `val_loss`, or the logged name of the metric that checkpoints follow."""
    mode: str = "min"
    """`min` or `max`: which values of the metric are best."""
    val_loss: float | None = None
    """The lowest validation loss; None before the first."""
    value: float | None = None
    """The best value of the metric; None before the first, and if val_loss decides."""

    @classmethod
    def of(cls, manager: ExpManager) -> BestValues:
        """Return those of a training that begins."""
        saved = manager.checkpoint_callback_params
        if not manager.create_checkpoint_callback or saved.monitor is None or metric_of(saved.monitor) is None:
            return cls()
        return cls(logged_name(saved.monitor), saved.mode)

    @property
    def is_known(self) -> bool:
        """Whether there was a validation, so that the best adapter so far is exported."""
        return self.val_loss is not None

    def add(self, loss: float, figures: Mapping[str, float]) -> bool:
        """Add a validation; return whether it is the best so far. Of equal ones, the first is. NaN is the worst.

        loss: in nats per answer token. figures: the metrics by logged name.
        """
        is_first = self.val_loss is None
        is_lowest = self.val_loss is None or loss < self.val_loss
        if is_lowest:
            self.val_loss = loss
        if self.monitor == VAL_LOSS:
            return is_lowest
        value, sign = figures[self.monitor], -1 if self.mode == "max" else 1
        is_best = not math.isnan(value) and (self.value is None or sign * value < sign * self.value)
        if is_best:
            self.value = value
        return is_best or is_first

    def forget(self) -> None:
        """Forget the best values, if the weights that had them are lost."""
        self.val_loss = self.value = None

    def summary(self) -> dict[str, object]:
        """Return the values for training_summary.json."""
        return {"best_val_loss": self.val_loss} | self._of_metric(f"best_{self.monitor}")

    def as_dict(self) -> dict[str, object]:
        """Return the values for a checkpoint."""
        return {"best_val_loss": self.val_loss} | self._of_metric("best_monitored")

    def restore(self, val_loss: float | None, value: float | None) -> None:
        """Restore the values of a checkpoint."""
        self.val_loss, self.value = val_loss, value

    def __str__(self) -> str:
        """Return the value that decides, with its name."""
        value = self.val_loss if self.monitor == VAL_LOSS else self.value
        return f"{self.monitor} {math.nan if value is None else value:.4f}"

    def _of_metric(self, key: str) -> dict[str, object]:
        return {} if self.monitor == VAL_LOSS else {key: self.value}
