# SPDX-License-Identifier: Apache-2.0
"""The parts of a report about a training: curves, speed and memory, lengths of the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_launcher.reports.charts import Series, histogram, lines
from nemo_launcher.reports.html import Html, element, facts, folded, section, table
from nemo_launcher.reports.numbers import number, short, whole
from nemo_launcher.reports.runs import Run, TrainingFiles
from nemo_launcher.runtime.curve_file import CurveContent, Point, Validation
from nemo_launcher.runtime.progress_file import duration

_SHOWN_POINTS = 25
_SHOWN_METRICS = 4


def sections(run: Run) -> list[Html | None]:
    """Return the sections about the training of a run; [] if its files are absent."""
    files = run.training
    if files is None:
        return []
    return [
        _curves(files.curve),
        _range_test(files),
        _speed(files),
        _lengths(files.provenance.get("lengths")),
    ]


def _curves(curve: CurveContent) -> Html | None:
    losses = Series("training", [(p.step, p.loss) for p in curve.points])
    validations = Series("validation", [(v.step, v.val_loss) for v in curve.validations], "two", marks=True)
    both = [series for series in (losses, validations) if series.points]
    loss_chart = lines("Loss by step", both, x_label="optimizer steps", y_label="loss (nats per answer token)")
    if loss_chart is None:
        return None
    rates = Series("learning rate", [(point.step, point.lr) for point in curve.points])
    rate_chart = lines("Learning rate by step", [rates], x_label="optimizer steps", y_label="learning rate")
    best = min(curve.validations, key=lambda each: each.val_loss, default=None)
    told = None if best is None else f"Lowest validation loss: {best.val_loss:.4f} after {best.step:,} steps."
    shown = told and element("p", told, class_="result")
    return section("Curves", shown, loss_chart, rate_chart, *_metric_charts(curve), _points(curve))


def _range_test(files: TrainingFiles) -> Html | None:
    """Return the loss at each rate of a learning rate range test; None without one, or if it is another training's."""
    test, used = files.range_test, number(files.summary.get("learning_rate"))
    if test is None or used not in (None, test.learning_rate):
        return None
    points = [(math.log10(rate), loss) for rate, loss in zip(test.rates, test.losses, strict=True) if rate > 0]
    labels = {"x_label": "learning rate, as a power of ten", "y_label": "smoothed loss (nats per answer token)"}
    chart = lines("Loss by learning rate", [Series("range test", points)], **labels)
    origin = "suggested by the test" if test.is_suggestion else "that of auto, as the test suggested none"
    told = f"The training's learning rate is {short(test.learning_rate)}, {origin}."
    return section("Learning rate range test", element("p", told, class_="result"), chart)


def _metric_charts(curve: CurveContent) -> list[Html | None]:
    """Return a chart of each metric that checkpoints or early stopping followed."""
    found = []
    for name in _metric_names(curve):
        points = [(v.step, v.metrics[name]) for v in curve.validations if name in v.metrics]
        series = Series(name, points, "two", marks=True)
        found.append(lines(f"{name} by step", [series], x_label="optimizer steps", y_label=name))
    return found


def _metric_names(curve: CurveContent) -> list[str]:
    return list(dict.fromkeys(name for validation in curve.validations for name in validation.metrics))[:_SHOWN_METRICS]


def _points(curve: CurveContent) -> Html:
    """Return the curve's numbers, at most _SHOWN_POINTS of each kind."""
    training = [[p.step, short(p.loss), short(p.lr)] for p in _some(curve.points)]
    tables = [table(["step", "loss", "learning rate"], training, caption="Training")] if training else []
    names = _metric_names(curve)
    validations = [
        [v.step, short(v.val_loss), *(_short(v.metrics.get(name)) or "" for name in names)]
        for v in _some(curve.validations)
    ]
    heads = ["step", "validation loss", *names]
    tables += [table(heads, validations, caption="Validation")] if validations else []
    return folded("Numbers of the curves", *tables)


def _some(items: Sequence[Any]) -> list[Any]:
    """Return evenly spaced items, the last one included."""
    every = -(-len(items) // _SHOWN_POINTS)
    return [] if not items else [item for place, item in enumerate(reversed(items)) if place % every == 0][::-1]


def _speed(files: TrainingFiles) -> Html | None:
    summary, seconds = files.summary, _seconds(files.curve)
    ranks, share = number(files.provenance.get("ranks")), number(summary.get("trainable_share"))
    device = files.provenance.get("device")
    memory, steps_seconds = number(summary.get("peak_memory_gib")), number(summary.get("training_seconds"))
    trained = whole(summary.get("trainable_parameters"))
    hours = None if seconds is None or not ranks else seconds * ranks / 3600
    unit = "process-hours" if device in (None, "cpu") else "GPU-hours"
    rows = [
        ("trained parameters", None if trained is None else trained + ("" if share is None else f" ({share:.3%})")),
        ("steps", whole(summary.get("steps"))),
        ("best validation loss", _short(summary.get("best_val_loss"))),
        ("samples per second", _short(summary.get("samples_per_second"))),
        ("tokens per second", whole(summary.get("tokens_per_second"))),
        ("computed tokens per second and replica", whole(summary.get("computed_tokens_per_second"))),
        ("time of the steps, last run", None if steps_seconds is None else duration(steps_seconds)),
        ("time with validation, all runs", None if seconds is None else duration(seconds)),
        (f"{unit} (that time x {whole(ranks)})", None if hours is None else f"{hours:.3g}"),
        ("peak memory, rank 0", None if memory is None else f"{memory:.2f} GiB"),
        ("device", None if device is None else str(device)[:100]),
    ]
    if all(value is None for _, value in rows):
        return None
    return section("Speed and memory", facts(rows, caption="Measured during the training; energy was not measured"))


def _seconds(curve: CurveContent) -> float | None:
    both: list[Point | Validation] = [*curve.points, *curve.validations]
    return max((each.seconds for each in both), default=None)


def _lengths(lengths: object) -> Html | None:
    if not isinstance(lengths, Mapping):
        return None
    edges, counts = (_numbers(lengths.get(key)) for key in ("edges", "counts"))
    title = "Tokens of the training samples"
    chart = histogram(title, edges, counts, x_label="tokens of a sample", y_label="samples")
    rows = [(name, whole(lengths.get(name))) for name in ("shortest", "median", "longest")]
    rows += [("tokens in all", whole(lengths.get("total"))), ("of them in the loss", whole(lengths.get("trained")))]
    return section("Lengths", chart, facts(rows, caption=title))


def _numbers(values: object) -> list[float]:
    found = [number(value) for value in values] if isinstance(values, list) and len(values) < 1000 else []
    return [value for value in found if value is not None]


def _short(value: object) -> str | None:
    found = number(value)
    return None if found is None else short(found)
