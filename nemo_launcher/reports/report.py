# SPDX-License-Identifier: Apache-2.0
"""The report of one training or evaluation: a page made from the files of its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.foreign import first_line
from nemo_launcher.reports import training
from nemo_launcher.reports.charts import Bar, bars
from nemo_launcher.reports.commands import commands
from nemo_launcher.reports.configuration import configuration
from nemo_launcher.reports.examples import DEFAULT_EXAMPLES, examples
from nemo_launcher.reports.html import Html, element, section, table
from nemo_launcher.reports.numbers import figure, interval, number, whole
from nemo_launcher.reports.page import check_replaceable, page
from nemo_launcher.reports.provenance import provenance
from nemo_launcher.reports.runs import Run
from nemo_launcher.runtime.progress_file import SUMMARY_NAME

_NAMES = {"base": "frozen base", "adapter": "base + adapter"}
_STYLES = {"base": "two", "adapter": "one"}


def write_report(run: Run) -> Path:
    """Write the report of a run and return its path. The file is no more open to others than the data it quotes.

    Raises UserError for a run without a results folder and for another file in the report's place, and WriteError.
    """
    path = run.report_file
    if run.results is None:
        raise UserError(Problem(str(run.config_file), "names no results folder", "launch the job again"))
    if path is None:
        raise UserError(Problem(str(run.config_file), "is behind a link to another folder", "name that folder"))
    check_replaceable(path)
    text = report_text(run)
    with atomic_path(path, like=run.data_files()) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_job_report(config_file: Path, values: Mapping[str, Any]) -> None:
    """Write the report at the end of a job. A report that cannot be written is one line, not a failed job."""
    run = Run(config_file.absolute(), values)
    if run.results is None:
        return
    try:
        if _is_up_to_date(run):
            return
        print(f"report: {write_report(run)}", flush=True)
    except Exception as error:  # whatever is in the files, the results themselves are there
        cause = environment_message(error) if isinstance(error, OSError) else None
        print(f"the report was not written: {cause or first_line(error)}", flush=True)


def _is_up_to_date(run: Run) -> bool:
    """Return whether the report is newer than the results, as after a job that found its training finished."""
    report, result = run.report_file, run.path("pred_file_path")
    if result is None and run.training is not None:
        result = run.training.folder / SUMMARY_NAME
    if report is None or result is None or not (report.is_file() and result.is_file()):
        return False
    return report.stat().st_mtime_ns >= result.stat().st_mtime_ns


def report_text(run: Run) -> str:
    """Return the page of a run."""
    if not run.is_evaluation:
        return _page(run, None)
    limit = number(run.values.get("report_examples", DEFAULT_EXAMPLES))
    metrics = [name for name, _ in _metrics(run.figures)]
    return _page(run, examples(run.scores, run.records, metrics, int(limit or 0)))


def _page(run: Run, of_examples: Html | None) -> str:
    parts = [
        element("p", _subtitle(run)),
        _figures(run.figures),
        _tasks(run.figures),
        of_examples,
        *training.sections(run),
        commands(run),
        configuration(run),
        provenance(run),
    ]
    return page(_title(run), *parts)


def _title(run: Run) -> str:
    return f"{'Evaluation' if run.is_evaluation else 'Training'}: {run.name[:200]}"


def _subtitle(run: Run) -> str:
    kind = {"adapter_learning": "adapter learning", "ia3_learning": "IA3"}.get(run.stage, run.stage)
    return f"{kind}; report of {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"


def _figures(figures: Mapping[str, Any]) -> Html | None:
    """Return the figures of all questions, with intervals, for base and adapter; None without figures."""
    found = _rows(figures)
    if not found:
        return None
    confidence = number(figures.get("confidence")) or 0.95
    intro = [f"{whole(figures.get('questions')) or 'unknown'} questions"]
    if number(figures.get("unanswerable")):
        intro.append(f"{whole(figures['unanswerable'])} of them without an answer")
    caption = f"Figures with {confidence:.0%} intervals"
    shares = [
        Bar(
            f"{_title_of(figures, metric)}, {'base' if model == 'base' else 'adapter'}",
            value,
            low,
            high,
            _STYLES[model],
        )
        for metric, model, value, low, high in _shares(figures)
    ]
    return section(
        "Results",
        element("p", ", ".join(intro) + "."),
        bars("Figures of base and adapter", shares[:16]),
        table(["metric", "model", "value", "interval"], found, caption=caption),
        _differences(figures),
    )


def _rows(figures: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for metric, is_share in _metrics(figures):
        for model, name in _NAMES.items():
            found = _at(figures, model, metric)
            if found:
                cells = [figure(found.get("value"), is_share=is_share), _interval(found, is_share=is_share)]
                rows.append([_title_of(figures, metric), name, *cells])
    return rows


def _differences(figures: Mapping[str, Any]) -> Html | None:
    rows: list[list[object]] = []
    for metric, is_share in _metrics(figures):
        found = _at(figures, "difference", metric)
        if found:
            value = number(found.get("value"))
            sign = "+" if value is not None and value > 0 else ""
            better = _NAMES.get(str(found.get("better")))
            verdict = "undecided" if better is None else f"{better} is better"
            cells = [sign + figure(value, is_share=is_share), _interval(found, is_share=is_share) or "none", verdict]
            rows.append([_title_of(figures, metric), *cells])
    if not rows:
        return None
    caption = "Adapter minus base, paired by question; undecided: the interval contains 0"
    return table(["metric", "difference", "interval", "verdict"], rows, caption=caption)


def _tasks(figures: Mapping[str, Any]) -> Html | None:
    """Return the adapter's figures by task; None with a single task."""
    tasks = figures.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        return None
    rows: list[list[object]] = []
    for task, found in list(tasks.items())[:200]:
        for row in _rows({**found, "metrics": figures.get("metrics")}) if isinstance(found, dict) else []:
            rows.append([str(task)[:100], *row])
    return section("Results by task", table(["task", "metric", "model", "value", "interval"], rows, caption="By task"))


def _shares(figures: Mapping[str, Any]) -> list[tuple[str, str, float, float | None, float | None]]:
    found = []
    for metric, is_share in _metrics(figures):
        for model in _NAMES:
            values = _at(figures, model, metric)
            value = number(values.get("value"))
            if is_share and value is not None:
                found.append((metric, model, value, number(values.get("low")), number(values.get("high"))))
    return found


def _metrics(figures: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return (name, whether it is a share) of each metric."""
    metrics = figures.get("metrics")
    found = metrics.items() if isinstance(metrics, dict) else ()
    return [(str(name), isinstance(kind, dict) and kind.get("is_share") is True) for name, kind in found]


def _title_of(figures: Mapping[str, Any], metric: str) -> str:
    kind = figures["metrics"].get(metric)
    title = kind.get("title") if isinstance(kind, dict) else None
    return str(title or metric)[:40]


def _at(figures: Mapping[str, Any], model: str, metric: str) -> Mapping[str, Any]:
    of_model = figures.get(model)
    found = of_model.get(metric) if isinstance(of_model, dict) else None
    return found if isinstance(found, dict) else {}


def _interval(found: Mapping[str, Any], *, is_share: bool) -> str:
    return interval(found.get("low"), found.get("high"), is_share=is_share)
