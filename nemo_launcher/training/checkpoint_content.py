# SPDX-License-Identifier: Apache-2.0
"""Validation of a training checkpoint's content.

A checksum detects damage, but not a file that something else wrote, so the values are checked too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from typing_extensions import NotRequired

from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.training.checkpoint_file import read_checkpoint
from nemo_launcher.training.checkpoint_header import DamagedCheckpointError
from nemo_launcher.training.optimizer_state import OptimizerState
from nemo_launcher.training.record import DATA_KEYS, SECTIONS, TrainingRecord

_Check = Callable[[object], bool]


class TrainingContent(TypedDict):
    """A checkpoint of a training."""

    epoch: int
    """Epochs that are done."""
    global_step: int
    """Optimizer steps that are done."""
    state_dict: AdapterState
    """The adapters."""
    optimizer_states: list[OptimizerState]
    """Of each optimizer."""
    lr_schedulers: list[dict[str, object]]
    """Of each schedule."""
    callbacks: dict[str, object]
    """Of each callback, by its name."""
    loops: dict[str, dict[str, Any]]
    """The counters of Lightning's loops."""
    position: dict[str, Any]
    """Where the training stands (training.position)."""
    finished: bool
    """Whether it has come to its end."""
    figures: dict[str, torch.Tensor]
    """What was logged last."""
    record: TrainingRecord
    """What decides its result."""
    best_val_loss: float | None
    """The lowest validation loss; None before the first."""
    best_monitored: NotRequired[float | None]
    """The best value of the metric that checkpoints follow; None before the first, absent if they follow none."""
    loss_scale: dict[str, float]
    """Of fp16 (training.loss_scale)."""
    row_costs: NotRequired[dict[str, object]]
    """The costs of rows (runtime.row_costs); absent in checkpoints of release 0.2.0."""


def read_training(path: str | Path) -> TrainingContent:
    """Return the content of a checkpoint that training can resume from.

    Raises what read_checkpoint raises, and DamagedCheckpointError if a value is missing or has the wrong type.
    """
    values = read_checkpoint(path)
    _require(values, _PARTS, "")
    if "best_monitored" in values:
        _require(values, {"best_monitored": _is_number_or_none}, "")
    content = cast("TrainingContent", values)
    _require(content["loops"], {"fit_loop": _is_dict}, "loops.")
    _require(content["position"], _POSITION, "position.")
    _require(content["loss_scale"], {"value": _is_number, "good_steps": _is_number}, "loss_scale.")
    record = content["record"]
    if record:  # empty: saved outside a job
        _require(record, {"config": _is_dict, "data": _is_dict, "environment": _is_dict, "base": _is_dict}, "record.")
        _require(record["config"], dict.fromkeys(SECTIONS, _is_dict), "record.config.")
        _require(record["data"], dict.fromkeys(DATA_KEYS, _is_texts), "record.data.")
        _require(record["base"], _BASE, "record.base.")
    return content


def _require(values: Mapping[str, object], checks: Mapping[str, _Check], above: str) -> None:
    for name, check in checks.items():
        if name not in values:
            raise DamagedCheckpointError(f"{above}{name} is missing")
        if not check(values[name]):
            raise DamagedCheckpointError(f"{above}{name} has a type that training never writes")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_dicts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_dict, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


_PARTS: dict[str, _Check] = {
    "epoch": _is_count,
    "global_step": _is_count,
    "state_dict": _is_dict,
    "optimizer_states": _is_dicts,
    "lr_schedulers": _is_dicts,
    "callbacks": _is_dict,
    "loops": _is_dict,
    "position": _is_dict,
    "finished": _is_flag,
    "figures": _is_dict,
    "record": _is_dict,
    "best_val_loss": _is_number_or_none,
    "loss_scale": _is_dict,
}
_BASE: dict[str, _Check] = {
    "weights": _is_text,
    "settings": _is_dict,
    "tokenizer": lambda value: value is None or _is_text(value),  # None: a tokenizer without an identity
}
_POSITION: dict[str, _Check] = {
    "step": _is_count,
    "validated": _is_flag,
    "epochs_ended": _is_count,
    "stopped": _is_text,
}
