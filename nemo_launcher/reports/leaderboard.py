# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what varies between them, their figures, and whether the best one is really the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.evaluation.intervals import Spread, over_seeds, paired_difference
from nemo_launcher.reports.masking import masked
from nemo_launcher.reports.numbers import number
from nemo_launcher.reports.runs import Run

_SEED = "model.seed"
_MAX_VARIED = 8


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a training, an evaluation, or both of one adapter."""

    training: Run | None
    """The training of the adapter, if it is below the folders."""
    evaluation: Run | None
    """The evaluation of the adapter, if there is one."""

    @property
    def run(self) -> Run:
        """The run whose report says most."""
        run = self.evaluation or self.training
        assert run is not None
        return run

    @property
    def name(self) -> str:
        """The name of the training, or else of the evaluation."""
        return (self.training or self.run).name

    @cached_property
    def summary(self) -> Mapping[str, object]:
        """The summary of the training."""
        run = self.training or self.run
        return {} if run.training is None else run.training.summary

    @cached_property
    def settings(self) -> dict[str, str]:
        """The configuration that may affect a result, by dotted key, with secrets masked."""
        run = self.training or self.run
        found = dict(_flat(masked(run.values, run.stage), ""))
        return {key: value for key, value in found.items() if not key.startswith("run.") and "/" not in value}

    def figure(self, metric: str) -> Mapping[str, Any]:
        """Return the adapter's figure of a metric; {} without one."""
        of_model = self.run.figures.get("adapter")
        found = of_model.get(metric) if isinstance(of_model, dict) else None
        return found if isinstance(found, dict) else {}

    def value(self, metric: str | None) -> float | None:
        """Return the adapter's value of a metric, or of the validation loss for None; None if it has none."""
        return number(self.summary.get("best_val_loss") if metric is None else self.figure(metric).get("value"))


@dataclass(frozen=True)
class Comparison:
    """Rows from the best to the worst."""

    rows: Sequence[Row]
    """The rows; those without a value come last."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Each metric's title, is_share and higher_is_better; {} if no row has figures."""
    verdicts: Sequence[str]
    """What each row is compared with the first: best, undecided, worse by how much, or empty if that cannot be told."""
    varied: Sequence[str]
    """The keys that differ between the rows."""
    seeds: Sequence[tuple[str, Spread]]
    """Groups of rows that differ in their seed alone, with the spread of the deciding figure."""

    @property
    def deciding(self) -> str | None:
        """The metric that orders the rows; None for the validation loss."""
        return next(iter(self.metrics), None)


def compare(runs: Sequence[Run]) -> Comparison:
    """Return the comparison of trainings and evaluations, each evaluation in one row with its adapter's training."""
    rows = _rows(runs)
    metrics = _metrics(rows)
    deciding = next(iter(metrics), None)
    higher = deciding is not None and metrics[deciding].get("higher_is_better") is not False
    worst = -math.inf if higher else math.inf
    values = {id(row): worst if (value := row.value(deciding)) is None else value for row in rows}
    rows.sort(key=lambda row: values[id(row)], reverse=higher)
    varied = _varied(rows)
    verdicts = ["", *(_verdict(row, rows[0], deciding, higher=higher) for row in rows[1:])][: len(rows)]
    if any(verdicts):  # of runs on other questions nothing is said
        verdicts[0] = "best"
    return Comparison(rows, metrics, verdicts, varied[:_MAX_VARIED], _seeds(rows, varied, deciding, higher=higher))


def _rows(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each evaluation and for each training that none of them is about."""
    trainings = [run for run in runs if not run.is_evaluation]
    by_adapter = {path: run for run in trainings if isinstance(path := value_of(run.values, "model.nemo_path"), str)}
    evaluations = [run for run in runs if run.is_evaluation]
    rows = [Row(by_adapter.get(str(run.values.get("adapter_model_file"))), run) for run in evaluations]
    evaluated = {id(row.training) for row in rows}
    return rows + [Row(run, None) for run in trainings if id(run) not in evaluated]


def _metrics(rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        metrics = row.run.figures.get("metrics")
        for name, kind in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(kind, dict) and row.value(name) is not None:
                found.setdefault(str(name), kind)
    return found


def _varied(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in keys if len({row.settings.get(key) for row in rows}) > 1]


def _verdict(row: Row, best: Row, metric: str | None, *, higher: bool) -> str:
    """Return how a row compares with the best one on the same questions, paired; empty if it cannot be compared."""
    if metric is None or row.value(metric) is None:
        return ""
    pairs = _pairs(best, row, metric)
    if pairs is None:
        return ""
    first, second, groups = pairs
    found = paired_difference(first, second, groups)
    is_worse = (found.value > 0) == higher
    return f"worse by {abs(found.value):.1%}" if found.is_decided and is_worse else "undecided"


def _pairs(best: Row, row: Row, metric: str) -> tuple[list[float], list[float], list[int]] | None:
    """Return the scores of both on the same questions and the questions' groups; None if they cannot be paired."""
    ours, theirs = best.run.scores, row.run.scores
    if not ours or len(ours) != len(theirs) or _data_differs(best.run, row.run):
        return None
    first: list[float] = []
    second: list[float] = []
    groups: list[int] = []
    for a, b in zip(ours, theirs, strict=True):
        if (a.get("task"), a.get("answers")) != (b.get("task"), b.get("answers")):
            return None
        scores = [_score(line, metric) for line in (a, b)]
        if scores[0] is None or scores[1] is None or not all(0 <= score <= 1 for score in scores if score is not None):
            continue
        first.append(scores[0])
        second.append(scores[1])
        group = a.get("group")
        groups.append(group if isinstance(group, int) else -len(groups) - 1)
    return (first, second, groups) if first else None


def _data_differs(one: Run, other: Run) -> bool:
    """Return whether two evaluations are known to have read different files; the same answers prove nothing."""
    found = [value_of(run.provenance, "data.data_paths") for run in (one, other)]
    sums = [[value_of(entry, "sha256") for entry in files] for files in found if isinstance(files, list)]
    return len(sums) == 2 and sums[0] != sums[1]


def _score(line: Mapping[str, Any], metric: str) -> float | None:
    of_model = line.get("adapter")
    scores = of_model.get("scores") if isinstance(of_model, dict) else None
    return number(scores.get(metric)) if isinstance(scores, dict) else None


def _seeds(rows: Sequence[Row], varied: Sequence[str], metric: str | None, *, higher: bool) -> list[tuple[str, Spread]]:
    """Return the spread over seeds of each group of rows whose other varied keys agree."""
    if _SEED not in varied:
        return []
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = row.value(metric)
        name = ", ".join(f"{key}={row.settings.get(key)}" for key in varied if key != _SEED)
        if value is not None:
            groups.setdefault(name, []).append(value)
    several = {name: values for name, values in groups.items() if len(values) > 1}
    return [(name or "all runs", over_seeds(values, higher_is_better=higher)) for name, values in several.items()]


def _flat(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)[:200]
