# SPDX-License-Identifier: Apache-2.0
"""The optimizers and learning rate schedules: one entry each, read by the launcher and the engine.

The names are those of nemo_toolkit's registries, and NeMo's for Apex's fused kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """An optimizer that `model.optim.name` may name."""

    not_taken: tuple[str, ...] = ()
    """Settings of model.optim that it has no parameter for."""
    whole_tensors: bool = False
    """Whether it keeps one number for a tensor or a row, of which tensor-parallel ranks would hold parts."""
    runs_as: str | None = None
    """The optimizer of nemo_toolkit's registry that runs in its place; None: the one of its own name."""
    arguments: Mapping[str, bool] = field(default_factory=dict)
    """What it is made with besides the settings of model.optim."""


# torch's fused AdamW computes the same update as Apex's fused Adam
_FUSED = OptimizerEntry(runs_as="adamw", arguments={"fused": True})
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "fused_adam": _FUSED,
    "distributed_fused_adam": _FUSED,
    "adam": OptimizerEntry(),
    "adamw": OptimizerEntry(),
    "sgd": OptimizerEntry(not_taken=("betas", "eps")),
    "adadelta": OptimizerEntry(not_taken=("betas",)),
    "adamax": OptimizerEntry(),
    "adagrad": OptimizerEntry(not_taken=("betas",)),
    "rmsprop": OptimizerEntry(not_taken=("betas",)),
    "rprop": OptimizerEntry(not_taken=("betas", "eps", "weight_decay")),
    "novograd": OptimizerEntry(whole_tensors=True),
    # with relative_step it would choose a rate of its own, and refuse lr
    "adafactor": OptimizerEntry(not_taken=("betas",), whole_tensors=True, arguments={"relative_step": False}),
    "adan": OptimizerEntry(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """A learning rate schedule that `model.optim.sched.name` may name."""

    unusable: str = ""
    """Why no configuration makes it work; empty: one does."""
    needs_warmup: bool = False
    """Whether it needs warmup_steps or warmup_ratio."""
    constant_steps: bool = False
    """Whether it takes constant_steps."""
    words: tuple[str, ...] = ()
    """What other programs call it."""


SCHEDULES: dict[str, ScheduleEntry] = {
    "CosineAnnealing": ScheduleEntry(
        constant_steps=True, words=("cosine", "cosine_annealing", "cosineannealinglr", "cosine_with_warmup")
    ),
    "WarmupAnnealing": ScheduleEntry(),
    "WarmupPolicy": ScheduleEntry(words=("constant", "constant_with_warmup", "none", "warmup")),
    "WarmupHoldPolicy": ScheduleEntry(),
    "WarmupHoldAnnealLinear": ScheduleEntry(),
    "WarmupHoldAnnealOneMinusSquareRoot": ScheduleEntry(),
    "SquareAnnealing": ScheduleEntry(),
    "SquareRootAnnealing": ScheduleEntry(),
    "InverseSquareRootAnnealing": ScheduleEntry(words=("inverse_sqrt", "rsqrt", "inverse_square_root")),
    "T5InverseSquareRootAnnealing": ScheduleEntry(unusable="needs a warm-up, and takes none"),
    "NoamAnnealing": ScheduleEntry(unusable="needs d_model, for which there is no key"),
    "NoamHoldAnnealing": ScheduleEntry(needs_warmup=True),
    "PolynomialDecayAnnealing": ScheduleEntry(words=("linear", "polynomial", "linear_with_warmup")),
    "PolynomialHoldDecayAnnealing": ScheduleEntry(),
    "CyclicLR": ScheduleEntry(unusable="needs base_lr and max_lr, for which there is no key"),
    "ExponentialLR": ScheduleEntry(unusable="needs gamma, for which there is no key"),
    "ReduceLROnPlateau": ScheduleEntry(
        unusable="follows a figure, and rates here follow the number of steps",
    ),
    "StepLR": ScheduleEntry(unusable="needs step_size, for which there is no key"),
}

WORDS_FOR_SCHEDULES = tuple((word, name) for name, entry in SCHEDULES.items() for word in entry.words)

if TYPE_CHECKING:
    OptimizerName = str
    ScheduleName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]
