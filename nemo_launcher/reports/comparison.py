# SPDX-License-Identifier: Apache-2.0
"""The page and the terminal's table that compare runs."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_launcher.clusters.text import visible
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.reports.charts import Bar, bars
from nemo_launcher.reports.html import Html, element, section, table
from nemo_launcher.reports.leaderboard import Comparison, Row
from nemo_launcher.reports.numbers import figure, interval, number, short, whole
from nemo_launcher.reports.page import check_replaceable, page

_MAX_ROWS = 500
_MAX_BARS = 20
_MAX_METRICS = 4
_WIDTH = 80
_EXPLANATION = (
    "Runs from the best to the worst. They are compared with the first on the same questions; "
    "undecided: the 95% interval of the paired difference contains 0."
)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page that compares runs; it is no more open to others than the data of any of them.

    Raises UserError for another file in its place, and WriteError.
    """
    check_replaceable(path)
    data = [file for row in comparison.rows for file in row.run.data_files()]
    text = comparison_page(comparison, path.parent)
    with atomic_path(path, like=data) as temporary:
        temporary.write_text(text, encoding="utf-8")


def comparison_page(comparison: Comparison, folder: Path) -> str:
    """Return the page, with links to the reports as seen from `folder`."""
    rows = comparison.rows
    metrics = list(comparison.metrics)[:_MAX_METRICS]
    head = ["run", *(_title(comparison.metrics[name]) or name for name in metrics), "best validation loss"]
    head += ["compared with the first"] if metrics else []
    head += [*comparison.varied, "trained parameters", "samples per second"]
    body = [
        [
            _link(row, folder),
            *(_cell(row.figure(name), comparison.metrics[name]) for name in metrics),
            _short(row.summary.get("best_val_loss")),
            *([comparison.verdicts[place]] if metrics else []),
            *(row.settings.get(key, "-") for key in comparison.varied),
            whole(row.summary.get("trainable_parameters")) or "-",
            _short(row.summary.get("samples_per_second")),
        ]
        for place, row in enumerate(rows[:_MAX_ROWS])
    ]
    left_out = f"{len(rows) - _MAX_ROWS:,} runs are left out." if len(rows) > _MAX_ROWS else None
    explained = _EXPLANATION if metrics else "Runs from the lowest to the highest validation loss."
    parts = [
        section("Runs", element("p", explained), _bars(comparison), table(head, body, caption="Runs"), left_out),
        _seeds(comparison),
    ]
    return page(f"{len(rows):,} runs compared", *parts)


def text_table(comparison: Comparison) -> str:
    """Return the comparison for a terminal, at most 80 columns wide."""
    deciding = comparison.deciding
    kind = {} if deciding is None else comparison.metrics[deciding]
    title = "best val. loss" if deciding is None else (_title(kind) or deciding)
    lines = [("run", title, "95% interval", "")] if deciding is not None else [("run", title, "", "")]
    for row, verdict in zip(comparison.rows, comparison.verdicts, strict=True):
        found = {"value": row.value(None)} if deciding is None else row.figure(deciding)
        is_share = kind.get("is_share") is True
        cells = (
            figure(found.get("value"), is_share=is_share),
            interval(found.get("low"), found.get("high"), is_share=is_share),
        )
        lines.append((visible(row.name), *cells, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    widths[1], widths[3] = min(widths[1], 16), min(widths[3], 18)
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 6)
    return "\n".join(
        "  ".join(_cut(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _bars(comparison: Comparison) -> Html | None:
    deciding = comparison.deciding
    if deciding is None or comparison.metrics[deciding].get("is_share") is not True:
        return None
    found = []
    for row in comparison.rows[:_MAX_BARS]:
        values = row.figure(deciding)
        value = number(values.get("value"))
        if value is not None:
            found.append(Bar(_cut(row.name, 18), value, number(values.get("low")), number(values.get("high"))))
    return bars(f"{_title(comparison.metrics[deciding]) or deciding} of each run", found)


def _seeds(comparison: Comparison) -> Html | None:
    if not comparison.seeds:
        return None
    deciding = comparison.deciding
    is_share = deciding is not None and comparison.metrics[deciding].get("is_share") is True
    rows = []
    for name, spread in comparison.seeds:
        ends = spread.interval
        of_mean = "" if ends is None else interval(ends.low, ends.high, is_share=is_share)
        values = (figure(value, is_share=is_share) for value in (spread.mean, spread.deviation, spread.best))
        rows.append([name, *values, of_mean])
    head = ["runs", "mean", "standard deviation", "best", "95% interval of the mean"]
    return section("Seeds", table(head, rows, caption="Runs that differ in model.seed alone"))


def _link(row: Row, folder: Path) -> Html:
    path = row.run.report_file
    if path is None:
        return element("span", row.name)
    return element("a", row.name[:200], href=urllib.parse.quote(os.fsencode(os.path.relpath(path, folder))))


def _cell(found: Mapping[str, Any], kind: Mapping[str, Any]) -> str:
    is_share = kind.get("is_share") is True
    ends = interval(found.get("low"), found.get("high"), is_share=is_share)
    return figure(found.get("value"), is_share=is_share) + (f" ({ends})" if ends else "")


def _title(kind: Mapping[str, Any]) -> str:
    return str(kind.get("title") or "")[:40]


def _short(value: object) -> str:
    found = number(value)
    return "-" if found is None else short(found)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."
