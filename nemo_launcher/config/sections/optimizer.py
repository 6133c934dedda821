# SPDX-License-Identifier: Apache-2.0
"""`model.optim` of adapter_learning and ia3_learning: the optimizer and its learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nemo_launcher.config.automatic import Auto, Find
from nemo_launcher.config.constraints import Bounds, Length, Meant
from nemo_launcher.config.fields import optional
from nemo_launcher.config.optimizers import SCHEDULE_ALIASES, OptimizerName, ScheduleName
from nemo_launcher.config.sections.common import Amount, FromMinusOne, Share, Size


@dataclass(frozen=True)
class Schedule:
    """`model.optim.sched`, with NeMo's keys."""

    name: Annotated[ScheduleName, Meant(SCHEDULE_ALIASES)]
    """The schedule."""
    warmup_steps: Size | Auto | None = None
    """Optimizer steps over which the rate rises to `lr`; `auto` is a tenth of all steps, from 1 to 50."""
    warmup_ratio: Share | None = optional()
    """The warm-up as a share of all steps; at most one of the two may be set."""
    constant_steps: Size | None = 0
    """Optimizer steps at the constant rate at the end of the schedule."""
    max_steps: FromMinusOne | None = optional()
    """Length of the schedule in optimizer steps; null or -1 for that of the training."""
    min_lr: Amount = 0.0
    """The final rate of the schedule."""
    monitor: str | None = "val_loss"
    """The metric for ReduceLROnPlateau; not read."""
    reduce_on_plateau: bool = False
    """Lightning's switch for ReduceLROnPlateau; not read."""


Beta = Annotated[float, Bounds(minimum=0, below=1, example=0.9)]
Betas = Annotated[list[Beta], Length(2, 2, (0.9, 0.98))]


@dataclass(frozen=True)
class Optimizer:
    """`model.optim`, with NeMo's keys."""

    name: OptimizerName
    """The optimizer."""
    lr: Annotated[float, Bounds(above=0, example=1e-4)] | Auto | Find
    """The highest learning rate of the schedule.

    `auto` depends on the adapter method and the number of steps. `find` runs Lightning's learning rate range test of
    100 steps before the training.
    """
    weight_decay: Amount | None = 0.0
    """Weight decay per step, relative to the learning rate; null for the optimizer's default."""
    betas: Betas | None = optional()
    """Decay rates of Adam's two moments."""
    eps: Annotated[float, Bounds(above=0, example=1e-8)] | None = optional()
    """Constant added to the denominator of the update."""
    sched: Schedule | None = None
    """The learning rate schedule; null for a constant rate."""
