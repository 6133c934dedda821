# SPDX-License-Identifier: Apache-2.0
"""Format jobs as a table that fits the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.clusters.text import visible
from nemo_launcher.runtime.progress_file import duration

WIDTH = 80
"""Columns of a table that no terminal shows."""
NARROWEST = 60
HEADINGS = ("stage", "job", "id", "state", "step", "val_loss", "left", "output", "folder")
LEFT_OUT = ("folder", "output", "id", "val_loss")
"""What a narrow table leaves out, in this order. A reason tells that an output is missing; verbs take jobs by name."""
WIDEST = {"stage": 20, "job": 28, "id": 10, "state": 36, "step": 15, "val_loss": 10, "left": 10, "output": 7}
SHORTENED = {"folder": 24, "job": 20}
"""Widths to which columns are reduced before another one is left out."""
LEAST = {"job": 12, "state": 9, "stage": 10, "step": 9}
GAP = "  "


def columns_here() -> int:
    """Return the columns of the terminal, or of the variable COLUMNS; WIDTH for a pipe or a file."""
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 0)).columns)


def table(found: Sequence[JobStatus], results_dir: Path, columns: int | None = WIDTH) -> str:
    """Return the jobs as a table: one line per job, with a long reason of its state on the lines below.

    columns: the most that a line may have; None for all columns in full. Folders are relative to `results_dir`. Long
    names are shortened in the middle.
    """
    form = _form(found, results_dir, columns)
    lines = []
    for number, row in enumerate([dict(zip(HEADINGS, HEADINGS, strict=True)), *form.rows]):
        cells = [shortened(row[name], width).ljust(width) for name, width in form.widths.items()]
        lines.append(GAP.join(cells).rstrip())
        if number > 0:
            lines += _reason_lines(found[number - 1], columns, row["state"])
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """Return text, shortened in the middle when it is longer than `width`."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


@dataclass(frozen=True, slots=True)
class _Form:
    """The columns of a table."""

    rows: list[dict[str, str]]
    """The cells of each job, by heading."""
    widths: dict[str, int]
    """The width of each column that is shown."""


def _form(found: Sequence[JobStatus], results_dir: Path, columns: int | None) -> _Form:
    """Return the fullest table that fits: first without reasons beside the states, then without columns."""
    for count in range(len(LEFT_OUT) + 1):
        for has_reasons in (True, False):
            rows = [_row(status, results_dir, has_reasons=has_reasons) for status in found]
            names = [name for name in HEADINGS if name not in LEFT_OUT[:count]]
            widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
            if columns is None:
                return _Form(rows, widths)
            widths = {name: min(width, WIDEST.get(name, width)) for name, width in widths.items()}
            if _narrow(widths, SHORTENED, columns):
                return _Form(rows, widths)
    _narrow(widths, LEAST, columns)
    return _Form(rows, widths)


def _narrow(widths: dict[str, int], least: dict[str, int], columns: int | None) -> bool:
    """Reduce column widths, in the order of `least`, until the table fits; return whether it does."""
    for name, minimum in [("", 0), *least.items()]:
        surplus = sum(widths.values()) + len(GAP) * (len(widths) - 1) - (columns or 0)
        if name in widths and surplus > 0:
            widths[name] = max(min(minimum, widths[name]), widths[name] - surplus)
    return sum(widths.values()) + len(GAP) * (len(widths) - 1) <= (columns or 0)


def _state(status: JobStatus, *, has_reasons: bool) -> str:
    text = f"{status.state} ({visible(status.reason)})"
    return text if has_reasons and status.reason and len(text) <= WIDEST["state"] else status.state


def _reason_lines(status: JobStatus, columns: int | None, cell: str) -> list[str]:
    """Return a reason on lines of its own; nothing if it is in the state's cell."""
    reason = visible(status.reason)
    if cell != status.state or not reason:
        return []
    return textwrap.wrap(reason, columns or 10**6, initial_indent="    ", subsequent_indent="    ")


def _row(status: JobStatus, results_dir: Path, *, has_reasons: bool) -> dict[str, str]:
    record, training = status.record, status.training
    loss = training.val_loss if training is not None else None
    folder = record.folder
    folder = folder.relative_to(results_dir) if folder.is_relative_to(results_dir) else folder
    cells = (
        record.stage,
        record.name,
        record.job_id or "-",
        _state(status, has_reasons=has_reasons),
        f"{training.step}/{training.max_steps}" if training is not None else "-",
        f"{loss:.3f}" if loss is not None else "-",
        _left(status),
        "?" if record.damage else "no" if status.missing_outputs else "written",
        str(folder),
    )
    return dict(zip(HEADINGS, map(visible, cells), strict=True))


def _left(status: JobStatus) -> str:
    """Return the time left of the training, or else of the time limit."""
    left = status.training_seconds_left
    if left is None and status.is_active and status.state == "running":
        left = status.seconds_left
    return "-" if left is None else duration(left)
