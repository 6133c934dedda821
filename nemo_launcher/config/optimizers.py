# SPDX-License-Identifier: Apache-2.0
"""The tables of optimizers and learning rate schedules, read by the launcher and the engine.

The names are those in nemo_toolkit's registries, plus NeMo's names for Apex's fused kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """An optimizer for `model.optim.name`."""

    unsupported: tuple[str, ...] = ()
    """Settings of model.optim that it does not have."""
    steps_by_rate: bool = False
    """Whether a step changes each weight by about the learning rate, as Adam's does: such rates are comparable."""
    needs_whole_tensors: bool = False
    """Whether its state has one number per tensor or row, which tensor parallelism would split."""
    runs_as: str | None = None
    """The optimizer in nemo_toolkit's registry that implements it; None for the one with its own name."""
    arguments: Mapping[str, bool] = field(default_factory=dict)
    """Constructor arguments in addition to the settings of model.optim."""


# torch's fused AdamW computes the same update as Apex's fused Adam
_FUSED = OptimizerEntry(steps_by_rate=True, runs_as="adamw", arguments={"fused": True})
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "fused_adam": _FUSED,
    "distributed_fused_adam": _FUSED,
    "adam": OptimizerEntry(steps_by_rate=True),
    "adamw": OptimizerEntry(steps_by_rate=True),
    "sgd": OptimizerEntry(unsupported=("betas", "eps")),
    "adadelta": OptimizerEntry(unsupported=("betas",)),
    "adamax": OptimizerEntry(steps_by_rate=True),
    "adagrad": OptimizerEntry(unsupported=("betas",)),
    "rmsprop": OptimizerEntry(unsupported=("betas",)),
    "rprop": OptimizerEntry(unsupported=("betas", "eps", "weight_decay")),
    "novograd": OptimizerEntry(needs_whole_tensors=True),
    # with relative_step it would choose the learning rate itself and refuse lr
    "adafactor": OptimizerEntry(unsupported=("betas",), needs_whole_tensors=True, arguments={"relative_step": False}),
    "adan": OptimizerEntry(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """A learning rate schedule for `model.optim.sched.name`."""

    unusable: str = ""
    """Why it cannot be used with any configuration; empty if it can."""
    needs_warmup: bool = False
    """Whether it needs warmup_steps or warmup_ratio."""
    constant_steps: bool = False
    """Whether it has constant_steps."""
    aliases: tuple[str, ...] = ()
    """Its names in other programs."""


SCHEDULES: dict[str, ScheduleEntry] = {
    "CosineAnnealing": ScheduleEntry(
        constant_steps=True, aliases=("cosine", "cosine_annealing", "cosineannealinglr", "cosine_with_warmup")
    ),
    "WarmupAnnealing": ScheduleEntry(),
    "WarmupPolicy": ScheduleEntry(aliases=("constant", "constant_with_warmup", "none", "warmup")),
    "WarmupHoldPolicy": ScheduleEntry(),
    "WarmupHoldAnnealLinear": ScheduleEntry(),
    "WarmupHoldAnnealOneMinusSquareRoot": ScheduleEntry(),
    "SquareAnnealing": ScheduleEntry(),
    "SquareRootAnnealing": ScheduleEntry(),
    "InverseSquareRootAnnealing": ScheduleEntry(aliases=("inverse_sqrt", "rsqrt", "inverse_square_root")),
    "T5InverseSquareRootAnnealing": ScheduleEntry(unusable="needs a warm-up but does not accept one"),
    "NoamAnnealing": ScheduleEntry(unusable="needs d_model, for which there is no key"),
    "NoamHoldAnnealing": ScheduleEntry(needs_warmup=True),
    "PolynomialDecayAnnealing": ScheduleEntry(aliases=("linear", "polynomial", "linear_with_warmup")),
    "PolynomialHoldDecayAnnealing": ScheduleEntry(),
    "CyclicLR": ScheduleEntry(unusable="needs base_lr and max_lr, for which there is no key"),
    "ExponentialLR": ScheduleEntry(unusable="needs gamma, for which there is no key"),
    "ReduceLROnPlateau": ScheduleEntry(
        unusable="depends on a metric, but rates here depend only on the number of steps",
    ),
    "StepLR": ScheduleEntry(unusable="needs step_size, for which there is no key"),
}

SCHEDULE_ALIASES = tuple((word, name) for name, entry in SCHEDULES.items() for word in entry.aliases)

if TYPE_CHECKING:
    OptimizerName = str
    ScheduleName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]
