# SPDX-License-Identifier: Apache-2.0
"""Conversion of the documented `model.optim` section for nemo_toolkit's registries of optimizers and schedulers."""

from __future__ import annotations

import inspect
from collections.abc import Collection

from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS
from omegaconf import DictConfig, OmegaConf

from nemo_launcher.config.ignored import LEARNING
from nemo_launcher.config.optimizers import OPTIMIZERS, OptimizerEntry
from nemo_launcher.config.sections.optimizer import Optimizer
from nemo_launcher.config.without_effect import keys_below
from nemo_launcher.errors import Problem, UserError, did_you_mean

_UNREAD = keys_below("optim.sched", f"{LEARNING[0]}.model")


def optimization_config(section: Optimizer, total_steps: int) -> DictConfig:
    """Return the section for ModelPT.setup_optimization; total_steps: optimizer steps of the whole training.

    Keys that are null are omitted. Raises UserError for unknown names, and for keys that the chosen optimizer or
    scheduler does not take.
    """
    values = {key: value for key, value in vars(section).items() if value is not None}
    name = values["name"]
    entry = OPTIMIZERS.get(name, OptimizerEntry())
    values |= {"name": entry.runs_as or name, **entry.arguments}
    problems = _unknown(name, "model.optim.name", [*AVAILABLE_OPTIMIZERS, *OPTIMIZERS])
    if not problems:
        keys = {key for key in values if key not in ("name", "sched")}
        problems += _not_taken(AVAILABLE_OPTIMIZERS[values["name"]], keys, "model.optim", name)
    if section.sched is not None:
        schedule = {
            key: value for key, value in vars(section.sched).items() if value is not None and key not in _UNREAD
        }
        problems += _schedule_problems(schedule)
        if not section.sched.constant_steps:  # most schedules have no constant phase
            schedule.pop("constant_steps", None)
        values["sched"] = schedule | {"max_steps": total_steps}
    if problems:
        raise UserError(problems)
    return OmegaConf.create(values)


def _schedule_problems(schedule: dict[str, object]) -> list[Problem]:
    name = str(schedule["name"])
    problems = _unknown(name, "model.optim.sched.name", AVAILABLE_SCHEDULERS)
    if problems:
        return problems
    needed = inspect.signature(AVAILABLE_SCHEDULERS[name]).parameters.values()
    absent = [
        parameter.name
        for parameter in needed
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in ("optimizer", "max_steps", *schedule)
    ]
    if absent:
        what = f"{name} needs {', '.join(absent)}, for which model.optim.sched has no key"
        return [Problem("model.optim.sched.name", what, "model.optim.sched.name=CosineAnnealing")]
    keys = {key for key, value in schedule.items() if value != 0} - {"name", "max_steps"}
    return _not_taken(AVAILABLE_SCHEDULERS[name], keys, "model.optim.sched", name)


def _unknown(name: str, where: str, known: Collection[str]) -> list[Problem]:
    return [] if name in known else [Problem(where, f"unknown {name!r}", did_you_mean(name, known))]


def _not_taken(kind: type, keys: set[str], where: str, name: str) -> list[Problem]:
    """Return a Problem for each key that is not a parameter of the class or its ancestors."""
    taken = {name for ancestor in kind.__mro__ for name in inspect.signature(ancestor).parameters}
    return [
        Problem(f"{where}.{key}", f"{name} has no parameter {key}", f"{where}.{key}=null")
        for key in sorted(keys - taken)
    ]
