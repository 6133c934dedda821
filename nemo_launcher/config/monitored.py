# SPDX-License-Identifier: Apache-2.0
"""What checkpoints and early stopping follow: a figure of every training, or a metric of answers to validation records.

Metrics have the names of `evaluation.metrics`; evaluation.monitored checks them.
"""

from __future__ import annotations

import re

from nemo_launcher.config.sections.exp_manager import EarlyStopping, ExpManager

VAL_LOSS = "val_loss"
LOGGED = (VAL_LOSS, "reduced_train_loss", "lr", "global_step", "epoch", "step")
"""The figures that every training logs."""
PREFIX = "val_"
"""What the names of figures of a validation begin with."""
CHECKPOINTS_KEY, STOPPING_KEY = (f"exp_manager.{name}_callback_params" for name in ("checkpoint", "early_stopping"))


def metric_of(monitor: str | None) -> str | None:
    """Return the metric that a monitor names, with or without `val_`; None for a figure of every training."""
    if monitor is None or monitor in LOGGED:
        return None
    return monitor if ":" in monitor else monitor.removeprefix(PREFIX)


def logged_name(monitor: str) -> str:
    """Return the name under which a monitored figure is logged: `val_accuracy` for the metric `accuracy`."""
    metric = metric_of(monitor)
    return monitor if metric is None else PREFIX + re.sub(r"\W", "_", metric)


def is_of_validation(monitor: str | None) -> bool:
    """Return whether only a validation gives a monitored figure a value."""
    return monitor == VAL_LOSS or metric_of(monitor) is not None


def monitors(manager: ExpManager) -> dict[str, tuple[str, str]]:
    """Return monitor and mode of checkpoints and of early stopping, by the key of their section, where they are on."""
    found: dict[str, tuple[str, str]] = {}
    saved = manager.checkpoint_callback_params
    if manager.create_checkpoint_callback and saved.monitor is not None:
        found[CHECKPOINTS_KEY] = saved.monitor, saved.mode
    if manager.create_early_stopping_callback:
        stopping = manager.early_stopping_callback_params or EarlyStopping()
        found[STOPPING_KEY] = stopping.monitor, stopping.mode
    return found


def metrics_of(manager: ExpManager) -> list[str]:
    """Return the metrics that a training computes in its validations."""
    found = (metric_of(monitor) for monitor, _ in monitors(manager).values())
    return list(dict.fromkeys(name for name in found if name is not None))
