# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation: each metric with its interval, overall and by task, and base against adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.intervals import (
    CONFIDENCE,
    RESAMPLES,
    difference_of,
    interval_of,
    paired_difference,
    resampled,
    sums_of_groups,
)
from nemo_launcher.evaluation.metrics.labels import too_many_labels
from nemo_launcher.evaluation.metrics.metric import Answered, Metric
from nemo_launcher.evaluation.metrics.registry import find, names_for
from nemo_launcher.evaluation.metrics.squad import goes_on
from nemo_launcher.evaluation.questions import Question

FloatArray = NDArray[np.float64]

Json = dict[str, object]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The metrics of an evaluation."""

    by_task: Mapping[str, Sequence[Metric]]
    """The metrics of each task, in the order of the data."""

    @property
    def overall(self) -> list[Metric]:
        """The metrics that all tasks have."""
        first, *others = self.by_task.values()
        return [metric for metric in first if all(metric in other for other in others)]

    def needs(self, kind: str) -> bool:
        """Return whether a metric scores this: text, likelihood or choices."""
        return any(metric.needs == kind for metrics in self.by_task.values() for metric in metrics)


def choose(names: Sequence[str] | None, questions: Sequence[Question]) -> Chosen:
    """Return the metrics with these names, or, for None, those that suit each task.

    Raises UserError for names that are unknown or whose library is missing, and for macro_f1 of free texts.
    """
    tasks = dict.fromkeys(question.task for question in questions)
    answers = {task: [q.label.answers or [] for q in questions if q.task == task] for task in tasks}
    if names is not None:
        metrics = find(names)
        problems = [problem for of_task in answers.values() for problem in too_many_labels(names, of_task)]
        if problems:
            raise UserError(problems)
        return Chosen(dict.fromkeys(tasks, metrics))
    ranked = {question.task: question.template.has_choices for question in questions}
    return Chosen({task: find(names_for(of_task, has_choices=ranked[task])) for task, of_task in answers.items()})


def scores_of(metric: Metric, answered: Sequence[Answered]) -> list[float | None]:
    """Return the score of each question alone; None where the metric has none."""
    places = _scored(metric, answered)
    if metric.scores is None or not places:
        return [None] * len(answered)
    found: list[float | None] = [None] * len(answered)
    for place, score in zip(places, metric.scores([answered[place] for place in places]), strict=True):
        found[place] = score
    return found


def value_of(metric: Metric, answered: Sequence[Answered]) -> float | None:
    """Return the metric of all answers; None if it scores none of them."""
    if not _scored(metric, answered):
        return None
    return float(metric.figure(_statistics(metric, answered).sum(axis=0)))


def figures(chosen: Chosen, questions: Sequence[Question], answered: Mapping[str, Sequence[Answered]]) -> Json:
    """Return all figures as a JSON object; docs/reference.md describes it.

    answered: the answers of each model, "base" and "adapter" or "adapter" alone, in the order of the questions.
    """
    places = {task: [i for i, question in enumerate(questions) if question.task == task] for task in chosen.by_task}
    shown = dict.fromkeys(metric for metrics in chosen.by_task.values() for metric in metrics)
    kinds = {m.name: {"title": m.title, "is_share": m.is_share, "higher_is_better": m.higher_is_better} for m in shown}
    found: Json = {"confidence": CONFIDENCE, "resamples": RESAMPLES, "metrics": kinds}
    found |= _measured(chosen.overall, [question.group for question in questions], answered)
    if len(places) > 1:
        found["tasks"] = {
            task: _measured(
                chosen.by_task[task],
                [questions[i].group for i in of_task],
                {name: [of_model[i] for i in of_task] for name, of_model in answered.items()},
            )
            for task, of_task in places.items()
        }
    return found


def _measured(metrics: Sequence[Metric], groups: Sequence[int], answered: Mapping[str, Sequence[Answered]]) -> Json:
    """Return the figures of some questions, by model and metric, and the differences of the two models."""
    statistics = {
        (name, metric.name): _statistics(metric, of_model) for name, of_model in answered.items() for metric in metrics
    }
    one_model = next(iter(answered.values()))
    found: Json = {
        "questions": len(groups),
        "unanswerable": sum(1 for question in one_model if not question.answers),
        "groups": len(set(groups)),
    }
    begun = {name: sum(goes_on(a.prediction, a.answers) for a in of_model) for name, of_model in answered.items()}
    found["begins_right"] = begun
    if not statistics:
        return found
    draws = _draws(statistics, groups)
    for name, of_model in answered.items():
        found[name] = {
            metric.name: _figure(metric, of_model, statistics[name, metric.name], groups, draws[name, metric.name])
            for metric in metrics
        }
    if len(answered) == 2:
        found["difference"] = {
            metric.name: _difference(
                metric, answered, groups, *(table[name, metric.name] for table in (statistics, draws) for name in _PAIR)
            )
            for metric in metrics
        }
    return found


_PAIR = ("adapter", "base")


def _draws(
    statistics: Mapping[tuple[str, str], FloatArray], groups: Sequence[int]
) -> dict[tuple[str, str], FloatArray]:
    """Return the resampled sums of all statistics, of the same resamples, which pairs the models."""
    ends = np.cumsum([table.shape[1] for table in statistics.values()])[:-1]
    draws = resampled(sums_of_groups(np.concatenate(list(statistics.values()), axis=1), groups))
    return dict(zip(statistics, np.split(draws, ends, axis=1), strict=True))


def _scored(metric: Metric, answered: Sequence[Answered]) -> list[int]:
    """Return the places of the questions that a metric scores."""
    return [place for place, question in enumerate(answered) if question.answers or metric.scores_unanswerable]


def _statistics(metric: Metric, answered: Sequence[Answered]) -> FloatArray:
    """Return the statistics of all questions, [questions, k]; 0 for those that the metric does not score."""
    places = _scored(metric, answered)
    if not places:
        return np.zeros((len(answered), 2))
    of_scored = metric.statistics([answered[place] for place in places])
    table = np.zeros((len(answered), of_scored.shape[1]))
    table[places] = of_scored
    return table


def _figure(
    metric: Metric, answered: Sequence[Answered], statistics: FloatArray, groups: Sequence[int], draws: FloatArray
) -> Json:
    """Return the value of a metric, its interval and the number of questions; nulls if it scores none."""
    places = _scored(metric, answered)
    if not places:
        return {"value": None, "low": None, "high": None, "questions": 0}
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no question that the metric scores
        value = float(metric.figure(statistics.sum(axis=0)))
        interval = interval_of(metric, statistics[places], [groups[place] for place in places], draws)
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return {"value": _finite(value), "low": low, "high": high, "questions": len(places)}


def _difference(
    metric: Metric,
    answered: Mapping[str, Sequence[Answered]],
    groups: Sequence[int],
    adapter: FloatArray,
    base: FloatArray,
    adapter_draws: FloatArray,
    base_draws: FloatArray,
) -> Json:
    """Return adapter minus base with its interval, and which is better; null where the interval contains 0."""
    places = _scored(metric, answered["adapter"])
    if not places:
        return {"value": None, "low": None, "high": None, "better": None}
    of_scored = [groups[place] for place in places]
    if metric.kind == "proportion":
        found = paired_difference(adapter[places, 0].tolist(), base[places, 0].tolist(), of_scored)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (float(metric.figure(table.sum(axis=0))) for table in (adapter, base))
            of_draws = metric.figure(adapter_draws) - metric.figure(base_draws)
        found = difference_of(first, second, of_draws, len(set(of_scored)), are_shares=metric.is_share)
    better = None
    if found.is_decided:
        better = "adapter" if (found.value > 0) == metric.higher_is_better else "base"
    low, high = (_finite(end) for end in (found.low, found.high))
    return {"value": _finite(found.value), "low": low, "high": high, "better": better}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
