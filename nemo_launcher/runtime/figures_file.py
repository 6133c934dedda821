# SPDX-License-Identifier: Apache-2.0
"""The file with the figures of an evaluation, read for model cards; docs/reference.md describes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import COPY, load_json

FIGURES_SUFFIX = "_metrics.json"
"""The suffix of the file's name, to the name of the predictions without its extension."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The value of a metric with its interval; None where it is not defined."""

    value: float | None
    """The value; of a share, from 0 to 1."""
    low: float | None
    """The lower end of the interval."""
    high: float | None
    """The upper end."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of the adapter on the questions of one task, or of all."""

    task: str | None
    """The task; None for all questions."""
    metric: str
    """The metric's name."""
    title: str
    """Its title."""
    is_share: bool
    """Whether its values are from 0 to 1."""
    questions: int | None
    """The number of questions that it scores."""
    adapter: Figure
    """The figure with the adapter; its value is not None."""
    base: Figure | None
    """That of the frozen base, if the evaluation compared them."""
    confidence: float
    """The confidence of the intervals, from 0 to 1."""


def read_figures(path: Path) -> list[Measured]:
    """Return the figures of the adapter in a `<predictions>_metrics.json`. Raises UserError for a file without any."""
    content = load_json(path)
    found: list[Measured] = []
    if isinstance(content, dict):
        confidence = _number(content.get("confidence")) or 0.0
        kinds, tasks = _object(content, "metrics"), _object(content, "tasks")
        found = list(_measured(None, content, kinds, confidence))
        for task in tasks:
            found += _measured(task, _object(tasks, task), kinds, confidence)
    if not found:
        what = "has no figures of an adapter"
        raise UserError(Problem(str(path), what, f"{COPY}, or name the results of an evaluation with right answers"))
    return found


def _measured(
    task: str | None, values: Mapping[str, object], kinds: Mapping[str, object], confidence: float
) -> Iterator[Measured]:
    adapter, base = _object(values, "adapter"), _object(values, "base")
    for metric in adapter:
        of_adapter, kind = _figure(_object(adapter, metric)), _object(kinds, metric)
        if of_adapter.value is not None:
            count, title = _object(adapter, metric).get("questions"), kind.get("title")
            yield Measured(
                task=task,
                metric=metric,
                title=title if isinstance(title, str) else metric,
                is_share=kind.get("is_share") is True,
                questions=count if type(count) is int else None,
                adapter=of_adapter,
                base=_figure(_object(base, metric)) if metric in base else None,
                confidence=confidence,
            )


def _figure(values: Mapping[str, object]) -> Figure:
    return Figure(*(_number(values.get(key)) for key in ("value", "low", "high")))


def _object(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
