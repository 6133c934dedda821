# SPDX-License-Identifier: Apache-2.0
"""The registry of metrics: modules of this package register them. Imports no torch, since the launcher checks names."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence

import nemo_launcher.evaluation.metrics as package
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation.metrics import own_code
from nemo_launcher.evaluation.metrics.metric import Metric

SQUAD = ("exact_match", "f1")
"""The metrics of questions whose answers are free text."""
LABELS = ("accuracy", "macro_f1")
"""The metrics of classification."""

CHOICES = "rank_classification"
"""The metric of questions with answer choices, before those of their generated answers."""

MAX_LABELS, MIN_QUESTIONS_OF_A_LABEL = 20, 3
"""A task is a classification if its questions have one answer each, and those are few and repeated."""

_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Register a metric under its name. Raises ValueError if the name is taken."""
    if metric.name in _METRICS:
        raise ValueError(f"a metric named {metric.name!r} is registered already")
    _METRICS[metric.name] = metric
    return metric


@functools.cache
def _load() -> None:
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def registered() -> Mapping[str, Metric]:
    """Return all registered metrics by name."""
    _load()
    return _METRICS


def name_problems(names: Sequence[str], where: str) -> list[Problem]:
    """Return the problems of metric names: unknown, repeated, or without their library. where: the key, for them."""
    problems = []
    for name in dict.fromkeys(names):
        metric = registered().get(name)
        if names.count(name) > 1:
            problems.append(Problem(where, f"{name!r} is named twice", "name it once"))
        if own_code.is_own(name):
            problems += own_code.problems(name, where)
        elif metric is None:
            problems.append(Problem(where, f"no metric is named {name!r}", did_you_mean(name, registered())))
        elif metric.library is not None and importlib.util.find_spec(metric.library) is None:
            what = f"{name!r} needs {metric.library}, which is not installed"
            problems.append(Problem(where, what, "pip install 'nemo-adapter-launcher[metrics]'"))
    return problems


def split_model_problems(names: Sequence[str], num_ranks: int, where: str) -> list[Problem]:
    """Return a Problem for each metric that needs the likelihood of answers, if num_ranks above 1 share a model."""
    if num_ranks == 1:
        return []
    needing = [name for name in names if name in registered() and registered()[name].needs == "likelihood"]
    what = "is computed by a whole model, but tensor and pipeline parallelism split it"
    fix = "leave it out, or set tensor_model_parallel_size=1 and pipeline_model_parallel_size=1"
    return [Problem(where, f"{name} {what}", fix) for name in needing]


def find(names: Sequence[str], where: str = "evaluation.metrics") -> list[Metric]:
    """Return the metrics with these names, in order; `module:function` is imported.

    Raises UserError with the problems of all names, and for a module that cannot be imported.
    """
    problems = name_problems(names, where)
    if problems:
        raise UserError(problems)
    return [own_code.load(name, where) if own_code.is_own(name) else registered()[name] for name in names]


def names_for(answers: Sequence[Sequence[str]], *, has_choices: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics that suit a task; answers: the right answers of each of its questions.

    has_choices: its template names answer choices, so that rank classification comes first.

    If every question has one answer, and these are at most 20 labels of at least 3 questions each on average, accuracy
    and macro-F1 come first.
    """
    labels = {right[0].strip() for right in answers if len(right) == 1}
    all_single = all(len(right) == 1 for right in answers)
    few = len(labels) <= min(MAX_LABELS, len(answers) // MIN_QUESTIONS_OF_A_LABEL)
    found = (*LABELS, *SQUAD) if all_single and few and len(labels) > 1 else SQUAD
    return (CHOICES, *found) if has_choices else found
