# SPDX-License-Identifier: Apache-2.0
"""Checks of `model.data.mixture`, for the launcher and the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nemo_launcher.config.overrides import override
from nemo_launcher.config.sections.learning import Ia3Model, Mixture
from nemo_launcher.errors import Problem, did_you_mean


def mixture_problems(model: Ia3Model, key: Callable[[str], str] = str) -> list[Problem]:
    """Return the problems of a mixture of tasks."""
    mixture = model.data.mixture
    if mixture is None:
        return []
    found = list(_weight_problems(mixture, [template.taskname for template in model.task_templates], key))
    if not model.data.shuffle:
        name = key("model.data.shuffle")
        what = "is False, but a mixture chooses samples by shuffling them"
        found.append(Problem(name, what, override(name, True)))
    return found


def _weight_problems(mixture: Mixture, tasks: list[str], key: Callable[[str], str]) -> Iterator[Problem]:
    where = key("model.data.mixture.weights")
    if mixture.weights is None:
        return
    for name in mixture.weights:
        if name not in tasks:
            yield Problem(f"{where}.{name}", "is not a task of task_templates", did_you_mean(name, tasks))
    for name in tasks:
        if name not in mixture.weights:
            yield Problem(where, f"has no weight for the task {name!r}", f"add {name}: 1, or 0 to leave the task out")
    if mixture.weights and not any(mixture.weights.values()):
        yield Problem(where, "are all 0", "give one task at least a weight above 0")
    defaults = Mixture()
    for option in ("temperature", "max_per_task"):
        if getattr(mixture, option) != getattr(defaults, option):
            what = "has no effect with weights, which are the tasks' shares"
            yield Problem(key(f"model.data.mixture.{option}"), what, f"remove it, or {where}=null")
